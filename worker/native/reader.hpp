// JSON records -> rows of numbers. Takes only what is plainly of the expected form and leaves the rest to Python,
// which knows all the rules and can say what is wrong: so nothing here has to agree with it on a strange record.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace reader {

// One JSON field that is read.
struct Field {
    std::string name;  // UTF-8; as it stands between the quotes, since a key with an escape is left to Python
    std::size_t target;
    std::int64_t offset;  // its first element's place in the item
    std::int64_t count;   // elements
    bool listed;          // a list of `count` numbers
    bool bare;            // one number as it is will do
};

// One model input: the dtype as a struct-module code of f, d or an integer, and how many elements an item has.
struct Target {
    char code;
    std::int64_t itemsize;
    std::int64_t elements;
};

class Plan {
  public:
    Plan(std::vector<Field> fields, std::vector<Target> targets);

    const std::vector<Target>& targets() const { return targets_; }

    // What one thread keeps between records.
    struct Pass {
        std::vector<std::uint64_t> seen;  // per field the last record it was in
        std::uint64_t record = 0;
    };
    Pass begin() const { return Pass{std::vector<std::uint64_t>(fields_.size()), 0}; }

    // Read one record into the items; false when it needs a closer look, the items then hold anything.
    bool read(const char* begin, const char* end, const std::vector<char*>& items, Pass& pass) const;

  private:
    std::size_t find(std::string_view key, std::size_t guess) const;
    const char* value(const char* p, const char* end, const Field& field, char* item) const;

    std::vector<Field> fields_;
    std::vector<Target> targets_;
    std::unordered_map<std::string_view, std::size_t> by_name_;
};

}  // namespace reader
