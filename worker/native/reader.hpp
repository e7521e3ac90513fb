// JSON records -> rows of numbers. Takes only what is plainly of the expected form and leaves the rest to Python,
// which knows all the rules and can say what is wrong: so nothing here has to agree with it on a strange record.
#pragma once

#include <cstddef>
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

// One step on the way to a field: the key of an object, or the place in a list.
struct Step {
    std::string key;
    std::int64_t place;  // -1: a key
};

class Plan {
  public:
    // `ways`: per field the steps that lead to it, where it is not a key of the record itself; else empty. A record that has
    // the name of such a field as a key needs a closer look.
    Plan(std::vector<Field> fields, std::vector<Target> targets, const std::vector<std::vector<Step>>& ways);

    const std::vector<Target>& targets() const { return targets_; }

    // What one thread keeps between records.
    struct Pass {
        std::vector<std::uint64_t> seen;  // per entry the last record it was in
        std::uint64_t record = 0;
        std::size_t found = 0;
    };
    Pass begin() const { return Pass{std::vector<std::uint64_t>(entries_), 0, 0}; }

    // Read one record into the items; false when it needs a closer look, the items then hold anything.
    bool read(const char* begin, const char* end, const std::vector<char*>& items, Pass& pass) const;

  private:
    // What is behind a key, or at a place of a list: a field, an object or list with fields inside, or a closer look.
    struct Entry {
        enum Kind { field, inside, closer } kind;
        std::size_t index;  // of the field or the node
        std::size_t number;  // in Pass::seen
    };
    // An object or list that fields are in.
    struct Node {
        bool list = false;
        std::vector<std::string> keys;     // of an object
        std::vector<std::int64_t> places;  // of a list
        std::vector<Entry> entries;
        std::unordered_map<std::string_view, std::size_t> by_key;
    };

    void add(const std::vector<Step>& steps, std::size_t field);
    std::size_t entry(std::size_t node, const Step& step, Entry::Kind kind, std::size_t index);
    static std::size_t find(const Node& node, std::string_view key, std::size_t guess);
    const char* object(const Node& node, const char* p, const char* end, const std::vector<char*>& items, Pass& pass) const;
    const char* list(const Node& node, const char* p, const char* end, const std::vector<char*>& items, Pass& pass) const;
    const char* enter(const Entry& entry, const char* p, const char* end, const std::vector<char*>& items, Pass& pass) const;
    const char* value(const char* p, const char* end, const Field& field, char* item) const;

    std::vector<Field> fields_;
    std::vector<Target> targets_;
    std::vector<Node> nodes_;  // the first one is the record
    std::size_t entries_ = 0;
};

}  // namespace reader
