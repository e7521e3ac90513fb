#include "reader.hpp"

#include <cstring>
#include <type_traits>

#include "numbers.hpp"

namespace reader {
namespace {

constexpr int DEPTH_MAX = 64;  // of values that are passed over
constexpr std::int64_t POWER_MAX = 300;

const char* blank(const char* p, const char* end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) ++p;
    return p;
}

// The end of a UTF-8 sequence that begins with a byte above 0x7f; null where there is none.
const char* sequence(const char* p, const char* end) {
    const auto byte = [&](int i) { return static_cast<unsigned char>(p[i]); };
    const auto follows = [&](int i) { return (byte(i) & 0xC0) == 0x80; };
    const unsigned char lead = byte(0);
    if (lead >= 0xC2 && lead <= 0xDF) return end - p >= 2 && follows(1) ? p + 2 : nullptr;
    if (lead >= 0xE0 && lead <= 0xEF) {
        if (end - p < 3 || !follows(1) || !follows(2)) return nullptr;
        if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) > 0x9F)) return nullptr;
        return p + 3;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (end - p < 4 || !follows(1) || !follows(2) || !follows(3)) return nullptr;
        if ((lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) > 0x8F)) return nullptr;
        return p + 4;
    }
    return nullptr;
}

// Behind the closing quote of a string whose opening one was passed; null when it is not one, or has an escape
// that says more than its letter.
const char* string(const char* p, const char* end, bool escapes) {
    while (p < end) {
        const unsigned char c = static_cast<unsigned char>(*p);
        if (c == '"') return p + 1;
        if (c < 0x20) return nullptr;
        if (c == '\\') {
            if (!escapes || end - p < 2 || std::memchr("\"\\/bfnrt", p[1], 8) == nullptr) return nullptr;
            p += 2;
        } else if (c < 0x80) {
            ++p;
        } else if ((p = sequence(p, end)) == nullptr) {
            return nullptr;
        }
    }
    return nullptr;
}

const char* literal(const char* p, const char* end, std::string_view word) {
    const bool there = static_cast<std::size_t>(end - p) >= word.size() && word.compare(0, word.size(), p, word.size()) == 0;
    return there ? p + word.size() : nullptr;
}

// Behind any value; null when it is none, or one that Python's parser might refuse.
const char* pass_over(const char* p, const char* end, int depth) {
    if (p == end || depth == 0) return nullptr;
    switch (*p) {
        case '"':
            return string(p + 1, end, true);
        case 't':
            return literal(p, end, "true");
        case 'f':
            return literal(p, end, "false");
        case 'n':
            return literal(p, end, "null");
        case '[':
        case '{': {
            const bool object = *p == '{';
            const char closing = object ? '}' : ']';
            p = blank(p + 1, end);
            if (p < end && *p == closing) return p + 1;
            while (true) {
                if (object) {
                    if (p == end || *p != '"' || (p = string(p + 1, end, true)) == nullptr) return nullptr;
                    p = blank(p, end);
                    if (p == end || *p != ':') return nullptr;
                    p = blank(p + 1, end);
                }
                if ((p = pass_over(p, end, depth - 1)) == nullptr) return nullptr;
                p = blank(p, end);
                if (p == end) return nullptr;
                if (*p == closing) return p + 1;
                if (*p != ',') return nullptr;
                p = blank(p + 1, end);
            }
        }
        default: {
            numbers::Number n;
            // one beyond float64 makes the whole record invalid
            if (!numbers::scan(p, end, n) || n.exponent + n.digits > POWER_MAX) return nullptr;
            return n.end;
        }
    }
}

// Writes a number as a T; false when it is none, or Python has to say what it is.
template <typename T>
bool store(const numbers::Number& n, char* place) {
    T stored;
    if constexpr (std::is_floating_point_v<T>) {
        double value;
        if (!numbers::to_double(n, value)) return false;
        stored = static_cast<T>(value);
        if (!std::isfinite(stored)) return false;
    } else {
        std::int64_t value;
        if (!numbers::to_integer(n, value)) return false;
        stored = static_cast<T>(value);
        // the same number again, and not by way of another sign
        if (static_cast<std::int64_t>(stored) != value || (stored < 0) != (value < 0)) return false;
    }
    std::memcpy(place, &stored, sizeof stored);
    return true;
}

// Reads `count` numbers with commas between them; behind the last, or null.
template <typename T>
const char* read_numbers(const char* p, const char* end, std::int64_t count, char* place) {
    numbers::Number n;
    for (std::int64_t i = 0; i < count; ++i, place += sizeof(T)) {
        if (i > 0) {
            p = blank(p, end);
            if (p == end || *p != ',') return nullptr;
            p = blank(p + 1, end);
        }
        if (!numbers::scan(p, end, n) || !store<T>(n, place)) return nullptr;
        p = n.end;
    }
    return p;
}

const char* read_as(char code, const char* p, const char* end, std::int64_t count, char* place) {
    switch (code) {
        case 'f':
            return read_numbers<float>(p, end, count, place);
        case 'd':
            return read_numbers<double>(p, end, count, place);
        case 'b':
            return read_numbers<signed char>(p, end, count, place);
        case 'B':
            return read_numbers<unsigned char>(p, end, count, place);
        case 'h':
            return read_numbers<short>(p, end, count, place);
        case 'H':
            return read_numbers<unsigned short>(p, end, count, place);
        case 'i':
            return read_numbers<int>(p, end, count, place);
        case 'I':
            return read_numbers<unsigned int>(p, end, count, place);
        case 'l':
            return read_numbers<long>(p, end, count, place);
        case 'L':
            return read_numbers<unsigned long>(p, end, count, place);
        case 'q':
            return read_numbers<long long>(p, end, count, place);
        case 'Q':
            return read_numbers<unsigned long long>(p, end, count, place);
        default:
            return nullptr;
    }
}

}  // namespace

Plan::Plan(std::vector<Field> fields, std::vector<Target> targets, const std::vector<std::vector<Step>>& ways)
    : fields_(std::move(fields)), targets_(std::move(targets)), nodes_(1) {
    for (std::size_t i = 0; i < fields_.size(); ++i) {
        if (i < ways.size() && !ways[i].empty()) {
            add(ways[i], i);
        } else {
            entry(0, Step{fields_[i].name, -1}, Entry::field, i);
        }
    }
    for (std::size_t i = 0; i < fields_.size() && i < ways.size(); ++i) {
        if (!ways[i].empty()) entry(0, Step{fields_[i].name, -1}, Entry::closer, 0);
    }
    for (Node& node : nodes_) {
        for (std::size_t i = 0; i < node.keys.size(); ++i) node.by_key.emplace(node.keys[i], i);
    }
}

// Adds the way to a field. It leads over objects and lists; what is one in one way is one in all.
void Plan::add(const std::vector<Step>& steps, std::size_t field) {
    std::size_t node = 0;
    for (std::size_t i = 0; i + 1 < steps.size(); ++i) {
        Node& here = nodes_[node];
        std::size_t found = here.entries.size();
        for (std::size_t k = 0; k < here.entries.size(); ++k) {
            const bool same = steps[i].place < 0 ? here.keys[k] == steps[i].key : here.places[k] == steps[i].place;
            if (same && here.entries[k].kind == Entry::inside) found = k;
        }
        if (found < here.entries.size()) {
            node = here.entries[found].index;
            continue;
        }
        nodes_.emplace_back();
        nodes_.back().list = steps[i + 1].place >= 0;
        entry(node, steps[i], Entry::inside, nodes_.size() - 1);
        node = nodes_.size() - 1;
    }
    entry(node, steps.back(), Entry::field, field);
}

std::size_t Plan::entry(std::size_t node, const Step& step, Entry::Kind kind, std::size_t index) {
    nodes_[node].keys.push_back(step.key);
    nodes_[node].places.push_back(step.place);
    nodes_[node].entries.push_back(Entry{kind, index, entries_});
    return entries_++;
}

// The entry of this key, else the number of entries. Records mostly have theirs in the same order.
std::size_t Plan::find(const Node& node, std::string_view key, std::size_t guess) {
    if (guess < node.keys.size() && node.keys[guess] == key) return guess;
    const auto found = node.by_key.find(key);
    return found == node.by_key.end() ? node.entries.size() : found->second;
}

// Reads the value of a field; behind it, or null.
const char* Plan::value(const char* p, const char* end, const Field& field, char* item) const {
    const Target& target = targets_[field.target];
    char* place = item + field.offset * target.itemsize;
    const bool list = p < end && *p == '[';
    if (!(list ? field.listed : field.bare)) return nullptr;
    if (list) p = blank(p + 1, end);
    p = read_as(target.code, p, end, field.count, place);
    if (p == nullptr || !list) return p;
    p = blank(p, end);
    return p < end && *p == ']' ? p + 1 : nullptr;
}

// Reads what an entry stands for; behind it, or null.
const char* Plan::enter(const Entry& entry, const char* p, const char* end, const std::vector<char*>& items,
                        Pass& pass) const {
    if (entry.kind == Entry::closer) return nullptr;
    if (pass.seen[entry.number] == pass.record) return nullptr;  // of a name that is there twice the last one counts
    pass.seen[entry.number] = pass.record;
    if (entry.kind == Entry::field) {
        ++pass.found;
        const Field& field = fields_[entry.index];
        return value(p, end, field, items[field.target]);
    }
    const Node& node = nodes_[entry.index];
    return node.list ? list(node, p, end, items, pass) : object(node, p, end, items, pass);
}

const char* Plan::list(const Node& node, const char* p, const char* end, const std::vector<char*>& items,
                       Pass& pass) const {
    if (p == end || *p != '[') return nullptr;
    std::int64_t place = 0;
    do {
        p = blank(p + 1, end);  // behind the bracket or a comma
        std::size_t index = 0;
        while (index < node.places.size() && node.places[index] != place) ++index;
        p = index == node.places.size() ? pass_over(p, end, DEPTH_MAX) : enter(node.entries[index], p, end, items, pass);
        if (p == nullptr) return nullptr;
        p = blank(p, end);
        ++place;
    } while (p < end && *p == ',');
    return p < end && *p == ']' ? p + 1 : nullptr;
}

const char* Plan::object(const Node& node, const char* p, const char* end, const std::vector<char*>& items,
                         Pass& pass) const {
    if (p == end || *p != '{') return nullptr;
    std::size_t guess = 0;
    do {
        p = blank(p + 1, end);  // behind the brace or a comma
        if (p == end || *p != '"') return nullptr;
        const char* key = p + 1;
        if ((p = string(key, end, false)) == nullptr) return nullptr;
        const std::size_t index = find(node, std::string_view(key, static_cast<std::size_t>(p - 1 - key)), guess);
        p = blank(p, end);
        if (p == end || *p != ':') return nullptr;
        p = blank(p + 1, end);
        if (index == node.entries.size()) {
            p = pass_over(p, end, DEPTH_MAX);
        } else {
            guess = index + 1;
            p = enter(node.entries[index], p, end, items, pass);
        }
        if (p == nullptr) return nullptr;
        p = blank(p, end);
    } while (p < end && *p == ',');
    return p < end && *p == '}' ? p + 1 : nullptr;
}

bool Plan::read(const char* p, const char* end, const std::vector<char*>& items, Pass& pass) const {
    ++pass.record;
    pass.found = 0;
    p = object(nodes_[0], blank(p, end), end, items, pass);
    return p != nullptr && blank(p, end) == end && pass.found == fields_.size();
}

}  // namespace reader
