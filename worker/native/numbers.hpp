// JSON numbers <-> binary: exact both ways, or not at all.
#pragma once

#include <cfloat>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>

namespace numbers {

inline bool is_digit(char c) { return static_cast<unsigned char>(c - '0') < 10; }

// A JSON number's text, taken apart but not yet rounded to anything.
struct Number {
    const char* begin;
    const char* end;
    std::uint64_t mantissa;  // all its digits; meaningless when there are more than fit
    std::int64_t exponent;   // value = +-mantissa * 10^exponent
    std::int64_t digits;     // leading zeros included
    bool negative;
    bool integer;  // neither a fraction nor an exponent
};

constexpr std::int64_t MANTISSA_DIGITS = 19;  // the most that always fit 64 bits
constexpr std::int64_t EXPONENT_MAX = 100000;

constexpr bool little_endian() {
#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__) && (defined(__GNUC__) || defined(__clang__))
    return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
#else
    return false;
#endif
}

#if defined(__GNUC__) || defined(__clang__)
// How many of the eight bytes are digits before the first that is not, and their value: no branch depends on
// them, because the lengths of numbers cannot be foreseen (the multiplications are Lemire's).
inline int leading_digits(const char* p, std::uint64_t& value) {
    std::uint64_t chunk;
    std::memcpy(&chunk, p, 8);
    const std::uint64_t others =
        ((chunk + 0x4646464646464646u) | (chunk - 0x3030303030303030u)) & 0x8080808080808080u;
    // a carry can only mark bytes above the first that is no digit
    const int count = others == 0 ? 8 : __builtin_ctzll(others) >> 3;
    // the digits to the upper end, zeros in front of them
    chunk = count == 0 ? 0 : (chunk - 0x3030303030303030u) << (64 - 8 * count);
    chunk = (chunk * 10) + (chunk >> 8);
    value = (((chunk & 0x000000FF000000FFu) * 0x000F424000000064u) +
             (((chunk >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u)) >>
            32;
    value = static_cast<std::uint32_t>(value);
    return count;
}
#endif

// Behind the digits that stand at p; their value is appended to the mantissa's.
inline const char* digits(const char* p, const char* end, std::uint64_t& mantissa) {
#if defined(__GNUC__) || defined(__clang__)
    if constexpr (little_endian()) {
        static constexpr std::uint64_t POWERS[] = {1,      10,      100,      1000,     10000,
                                                   100000, 1000000, 10000000, 100000000};
        if (end - p >= 16) {
            std::uint64_t first, second;
            const int some = leading_digits(p, first);
            int more = leading_digits(p + 8, second);
            const std::uint64_t all = some == 8 ? ~std::uint64_t{0} : 0;
            more &= static_cast<int>(all);
            mantissa = (mantissa * POWERS[some] + first) * POWERS[more] + (second & all);
            p += some + more;
            if (some + more < 16) return p;
        }
    }
#endif
    while (p < end && is_digit(*p)) mantissa = mantissa * 10 + static_cast<std::uint64_t>(*p++ - '0');
    return p;
}

// Reads one number by JSON's grammar from [p, end); false when none stands there.
inline bool scan(const char* p, const char* end, Number& n) {
    n.begin = p;
    n.negative = p < end && *p == '-';
    p += n.negative;
    n.mantissa = 0;
    n.exponent = 0;
    n.integer = true;
    const char* first = p;
    if (p == end || !is_digit(*p)) return false;
    if (*p == '0') {
        ++p;
        if (p < end && is_digit(*p)) return false;
    } else {
        p = digits(p, end, n.mantissa);
    }
    n.digits = p - first;
    if (p < end && *p == '.') {
        const char* fraction = ++p;
        p = digits(p, end, n.mantissa);
        if (p == fraction) return false;
        n.integer = false;
        n.digits += p - fraction;
        n.exponent = fraction - p;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        ++p;
        const bool down = p < end && *p == '-';
        if (p < end && (*p == '-' || *p == '+')) ++p;
        const char* power = p;
        std::int64_t value = 0;
        for (; p < end && is_digit(*p); ++p) {
            if (value < EXPONENT_MAX) value = value * 10 + (*p - '0');
        }
        if (p == power) return false;
        n.integer = false;
        n.exponent += down ? -value : value;
    }
    n.end = p;
    return true;
}

// The nearest double. False where that would be infinite or is told less than exactly: look closer then.
inline bool to_double(const Number& n, double& value) {
    static constexpr double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                        1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
#if FLT_EVAL_METHOD == 0
    // both operands exact, one rounding (Clinger's fast path)
    if (n.digits <= MANTISSA_DIGITS && n.mantissa <= (std::uint64_t{1} << 53) && n.exponent >= -22 &&
        n.exponent <= 22) {
        const double whole = static_cast<double>(n.mantissa);
        value = n.exponent < 0 ? whole / POWERS[-n.exponent] : whole * POWERS[n.exponent];
        // Python's parser makes the integer 0 of -0, which has no sign
        if (n.negative && !(n.integer && n.mantissa == 0)) value = -value;
        return true;
    }
#endif
    const auto [end, error] = std::from_chars(n.begin, n.end, value);
    if (n.integer && value == 0) value = 0;
    return error == std::errc() && end == n.end && std::isfinite(value);
}

// The very integer; false for a fraction, an exponent or too many digits to be sure.
inline bool to_integer(const Number& n, std::int64_t& value) {
    if (!n.integer || n.digits >= MANTISSA_DIGITS) return false;
    value = static_cast<std::int64_t>(n.mantissa);
    if (n.negative) value = -value;
    return true;
}

constexpr int FLOAT_TEXT_MAX = 40;

// Decimal exponents (of the first digit) between which a number is written without one. As orjson does.
template <typename F>
struct Plain;
template <>
struct Plain<float> {
    static constexpr int least = -6, most = 12;
};
template <>
struct Plain<double> {
    static constexpr int least = -5, most = 15;
};

// The shortest decimal that reads back as the same float; `null` for what JSON cannot say.
// Writes at most FLOAT_TEXT_MAX bytes.
template <typename F>
char* write(char* out, F value) {
    if (!std::isfinite(value)) {
        std::memcpy(out, "null", 4);
        return out + 4;
    }
    if (std::signbit(value)) {
        *out++ = '-';
        value = -value;
    }
    if (value == 0) {
        std::memcpy(out, "0.0", 3);
        return out + 3;
    }
    char text[FLOAT_TEXT_MAX];
    const char* last = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific).ptr;
    char digits[FLOAT_TEXT_MAX];
    int count = 1;
    digits[0] = text[0];
    const char* p = text + 1;
    if (*p == '.') {
        for (++p; *p != 'e'; ++p) digits[count++] = *p;
    }
    const bool down = p[1] == '-';
    int exponent = 0;
    for (p += 2; p < last; ++p) exponent = exponent * 10 + (*p - '0');
    if (down) exponent = -exponent;

    if (exponent < Plain<F>::least || exponent > Plain<F>::most) {
        *out++ = digits[0];
        if (count > 1) {
            *out++ = '.';
            std::memcpy(out, digits + 1, count - 1);
            out += count - 1;
        }
        *out++ = 'e';
        *out++ = exponent < 0 ? '-' : '+';
        return std::to_chars(out, out + 4, exponent < 0 ? -exponent : exponent).ptr;
    }
    if (exponent < 0) {
        std::memcpy(out, "0.", 2);
        out += 2;
        std::memset(out, '0', -exponent - 1);
        out += -exponent - 1;
        std::memcpy(out, digits, count);
        return out + count;
    }
    const int whole = exponent + 1;
    if (count <= whole) {
        std::memcpy(out, digits, count);
        std::memset(out + count, '0', whole - count);
        out += whole;
        std::memcpy(out, ".0", 2);
        return out + 2;
    }
    std::memcpy(out, digits, whole);
    out += whole;
    *out++ = '.';
    std::memcpy(out, digits + whole, count - whole);
    return out + (count - whole);
}

inline char* write_integer(char* out, std::int64_t value) { return std::to_chars(out, out + 24, value).ptr; }
inline char* write_integer(char* out, std::uint64_t value) { return std::to_chars(out, out + 24, value).ptr; }

// Microseconds as milliseconds: what `write` gives for the double nearest to us / 1000.
inline char* write_milliseconds(char* out, std::int64_t us) {
    // up to here three decimals are always the shortest text of their double
    if (us < 0 || us >= (std::int64_t{1} << 49)) return write(out, static_cast<double>(us) / 1000);
    out = write_integer(out, us / 1000);
    const int rest = static_cast<int>(us % 1000);
    *out++ = '.';
    *out++ = static_cast<char>('0' + rest / 100);
    if (rest % 100 != 0) {
        *out++ = static_cast<char>('0' + rest / 10 % 10);
        if (rest % 10 != 0) *out++ = static_cast<char>('0' + rest % 10);
    }
    return out;
}

}  // namespace numbers
