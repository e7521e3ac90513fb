// Rows of numbers -> JSON text, into a buffer that is used again for every row.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "numbers.hpp"

namespace writer {

// Text under way. `room` first, for the most that will be added; adding itself looks at nothing.
class Text {
  public:
    Text() { grow(1024); }
    void clear() { length_ = 0; }
    void room(std::size_t more) {
        if (length_ + more > size_) grow(length_ + more);
    }
    void add(std::string_view part) {
        std::memcpy(begin_.get() + length_, part.data(), part.size());
        length_ += part.size();
    }
    void add(char c) { begin_[length_++] = c; }
    char* here() { return begin_.get() + length_; }
    void until(char* end) { length_ = static_cast<std::size_t>(end - begin_.get()); }
    const char* data() const { return begin_.get(); }
    std::size_t length() const { return length_; }

  private:
    void grow(std::size_t wanted);

    std::unique_ptr<char[]> begin_;
    std::size_t length_ = 0, size_ = 0;
};

// A C-order array of one of the types below, by the struct module's code: f d ? and the integers.
struct Array {
    const char* data;
    char code;
    std::int64_t itemsize;
    std::vector<std::int64_t> shape;
};

bool known(char code);

// The text of item `row` of an array of rank 1 or more: nested lists, or a scalar where the rank is 1.
void add_item(Text& text, const Array& array, std::int64_t row);

// What `{"label", "score", "top"}` says of one row of scores: its best classes, the lower first on a tie.
class Top {
  public:
    // `labels` are JSON texts, one per class; only scores of at least `threshold` count.
    Top(std::vector<std::string_view> labels, std::int64_t most, double threshold);

    // Adds the fragment; false when a score is not finite.
    template <typename F>
    bool add(Text& text, const F* scores);

  private:
    std::vector<std::string_view> labels_;
    std::size_t longest_ = 0;
    std::int64_t most_;
    double threshold_;
    std::vector<std::int64_t> best_;
};

}  // namespace writer
