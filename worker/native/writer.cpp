#include "writer.hpp"

#include <algorithm>

namespace writer {
namespace {

// Bytes of the longest element, its comma included.
constexpr std::size_t ELEMENT_MAX = numbers::FLOAT_TEXT_MAX + 1;

template <typename I>
char* write_as(char* out, const char* place) {
    I value;
    std::memcpy(&value, place, sizeof value);
    if constexpr (std::is_floating_point_v<I>) {
        return numbers::write(out, value);
    } else if constexpr (std::is_signed_v<I>) {
        return numbers::write_integer(out, static_cast<std::int64_t>(value));
    } else {
        return numbers::write_integer(out, static_cast<std::uint64_t>(value));
    }
}

char* write_element(char* out, char code, const char* place) {
    switch (code) {
        case 'f':
            return write_as<float>(out, place);
        case 'd':
            return write_as<double>(out, place);
        case '?': {
            const std::string_view word = *place ? "true" : "false";
            std::memcpy(out, word.data(), word.size());
            return out + word.size();
        }
        case 'b':
            return write_as<signed char>(out, place);
        case 'B':
            return write_as<unsigned char>(out, place);
        case 'h':
            return write_as<short>(out, place);
        case 'H':
            return write_as<unsigned short>(out, place);
        case 'i':
            return write_as<int>(out, place);
        case 'I':
            return write_as<unsigned int>(out, place);
        case 'l':
            return write_as<long>(out, place);
        case 'L':
            return write_as<unsigned long>(out, place);
        case 'q':
            return write_as<long long>(out, place);
        default:
            return write_as<unsigned long long>(out, place);
    }
}

const char* add_level(Text& text, const Array& array, std::size_t level, const char* place) {
    if (level == array.shape.size()) {
        text.room(ELEMENT_MAX);
        text.until(write_element(text.here(), array.code, place));
        return place + array.itemsize;
    }
    text.room(2);
    text.add('[');
    for (std::int64_t i = 0; i < array.shape[level]; ++i) {
        if (i > 0) {
            text.room(1);
            text.add(',');
        }
        place = add_level(text, array, level + 1, place);
    }
    text.room(1);
    text.add(']');
    return place;
}

}  // namespace

void Text::grow(std::size_t wanted) {
    const std::size_t size = std::max(wanted, size_ * 2);
    std::unique_ptr<char[]> larger(new char[size]);
    if (length_ > 0) std::memcpy(larger.get(), begin_.get(), length_);
    begin_ = std::move(larger);
    size_ = size;
}

bool known(char code) { return code != '\0' && std::strchr("fd?bBhHiIlLqQ", code) != nullptr; }

void add_item(Text& text, const Array& array, std::int64_t row) {
    std::int64_t elements = 1;
    for (std::size_t level = 1; level < array.shape.size(); ++level) elements *= array.shape[level];
    add_level(text, array, 1, array.data + row * elements * array.itemsize);
}

Top::Top(std::vector<std::string_view> labels, std::int64_t most, double threshold)
    : labels_(std::move(labels)), most_(most), threshold_(threshold), best_(static_cast<std::size_t>(most)) {
    for (const auto& label : labels_) longest_ = std::max(longest_, label.size());
}

template <typename F>
bool Top::add(Text& text, const F* scores) {
    const auto classes = static_cast<std::int64_t>(labels_.size());
    const F least = static_cast<F>(threshold_);  // as numpy compares: in the scores' own type
    bool finite = true;
    for (std::int64_t c = 0; c < classes; ++c) finite &= std::isfinite(scores[c]);
    if (!finite) return false;
    std::int64_t kept = 0;
    for (std::int64_t c = 0; c < classes; ++c) {
        const F score = scores[c];
        if (!(score >= least) || (kept == most_ && !(score > scores[best_[kept - 1]]))) continue;
        std::int64_t place = kept < most_ ? kept++ : kept - 1;
        for (; place > 0 && score > scores[best_[place - 1]]; --place) best_[place] = best_[place - 1];
        best_[place] = c;
    }
    if (kept == 0) {
        constexpr std::string_view nothing = R"({"label":null,"score":null,"top":[]})";
        text.room(nothing.size());
        text.add(nothing);
        return true;
    }
    text.room(64 + (kept + 1) * (longest_ + ELEMENT_MAX + 24));
    constexpr std::string_view label = R"({"label":)", score = R"(,"score":)";
    text.add(label);
    text.add(labels_[best_[0]]);
    text.add(score);
    const char* first = text.here();
    text.until(numbers::write(text.here(), scores[best_[0]]));
    const std::string_view first_score(first, static_cast<std::size_t>(text.here() - first));
    text.add(R"(,"top":[)");
    for (std::int64_t place = 0; place < kept; ++place) {
        if (place > 0) text.add(',');
        text.add(label);
        text.add(labels_[best_[place]]);
        text.add(score);
        if (place == 0) {
            text.add(first_score);
        } else {
            text.until(numbers::write(text.here(), scores[best_[place]]));
        }
        text.add('}');
    }
    text.add("]}");
    return true;
}

template bool Top::add<float>(Text&, const float*);
template bool Top::add<double>(Text&, const double*);

}  // namespace writer
