// The Python side of the batch path: worker.native._records. What each function takes is in _records.pyi.
#include "python.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "numbers.hpp"
#include "reader.hpp"
#include "writer.hpp"

using namespace python;

namespace {

// Counts up when a function takes or gives something else: an old build beside new Python code is not used.
constexpr long INTERFACE = 5;

// A C-order buffer held for as long as this lives.
class Buffer {
  public:
    Buffer(PyObject* owner, bool writable) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(owner, &view_, flags) != 0) throw Raised();
    }
    Buffer(Buffer&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }
    const Py_buffer& view() const { return view_; }
    char* data() const { return static_cast<char*>(view_.buf); }

    // The struct module's code of its elements; raises where that is not one plain character.
    char code() const {
        const char* format = view_.format == nullptr ? "B" : view_.format;
        if (format[0] == '\0' || format[1] != '\0') raise(PyExc_TypeError, "an array of native numbers is needed");
        return format[0];
    }

  private:
    Py_buffer view_{};
};

Ref made(const writer::Text& text) {
    return Ref(PyBytes_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.length())));
}

writer::Array array_of(const Buffer& buffer) {
    const Py_buffer& view = buffer.view();
    writer::Array array{buffer.data(), buffer.code(), view.itemsize, {}};
    if (view.ndim < 1 || !writer::known(array.code)) raise(PyExc_TypeError, "an array of numbers is needed");
    array.shape.assign(view.shape, view.shape + view.ndim);
    return array;
}

// -- Reader ------------------------------------------------------------------------------------------------

struct ReaderObject {
    PyObject_HEAD
    reader::Plan* plan;
};

// Per field its steps: bytes for a key, an integer for a place in a list.
std::vector<std::vector<reader::Step>> ways_of(PyObject* given) {
    std::vector<std::vector<reader::Step>> ways;
    for (Py_ssize_t i = 0; given != nullptr && i < PyList_GET_SIZE(given); ++i) {
        PyObject* steps = PyList_GET_ITEM(given, i);
        if (!PyTuple_Check(steps)) raise(PyExc_TypeError, "a way is a tuple of steps");
        ways.emplace_back();
        for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(steps); ++k) {
            PyObject* step = PyTuple_GET_ITEM(steps, k);
            if (PyBytes_Check(step)) {
                ways.back().push_back({std::string(bytes(step)), -1});
                continue;
            }
            const std::int64_t place = integer(step);
            if (place < 0 || k == 0) raise(PyExc_ValueError, "a place in a list counts from 0 and is no first step");
            ways.back().push_back({std::string(), place});
        }
    }
    return ways;
}

PyObject* reader_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
    return guarded([&]() -> PyObject* {
        PyObject *fields, *targets, *given = nullptr;
        if (!PyArg_ParseTuple(arguments, "O!O!|O!", &PyList_Type, &fields, &PyList_Type, &targets, &PyList_Type, &given)) {
            throw Raised();
        }
        std::vector<reader::Target> inputs;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(targets); ++i) {
            int code;
            Py_ssize_t itemsize, elements;
            if (!PyArg_ParseTuple(PyList_GET_ITEM(targets, i), "Cnn", &code, &itemsize, &elements)) throw Raised();
            inputs.push_back({static_cast<char>(code), itemsize, elements});
        }
        std::vector<reader::Field> wanted;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(fields); ++i) {
            const char* name;
            Py_ssize_t length, target, offset, count;
            int listed, bare;
            if (!PyArg_ParseTuple(PyList_GET_ITEM(fields, i), "y#nnnpp", &name, &length, &target, &offset, &count,
                                  &listed, &bare)) {
                throw Raised();
            }
            const bool fits = target >= 0 && target < static_cast<Py_ssize_t>(inputs.size()) && offset >= 0 &&
                              count >= 1 && offset <= inputs[target].elements - count && (count == 1 || !bare);
            if (!fits) raise(PyExc_ValueError, "a field outside of its item");
            wanted.push_back({std::string(name, length), static_cast<std::size_t>(target), offset, count, listed != 0,
                              bare != 0});
        }
        Ref self(type->tp_alloc(type, 0));
        reinterpret_cast<ReaderObject*>(self.get())->plan =
            new reader::Plan(std::move(wanted), std::move(inputs), ways_of(given));
        return self.release();
    });
}

void reader_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    delete reinterpret_cast<ReaderObject*>(self)->plan;
    type->tp_free(self);
    Py_DECREF(type);
}

// Where the records are, kept alive while the interpreter is let go.
struct Record {
    const char* begin;
    const char* end;
};

PyObject* reader_read(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 4);
        const reader::Plan& plan = *reinterpret_cast<ReaderObject*>(self)->plan;
        const List values(arguments[0]);
        const std::int64_t start = integer(arguments[1]), stop = integer(arguments[2]);
        const List arrays(arguments[3]);
        if (start < 0 || stop < start || stop > values.size()) raise(PyExc_IndexError, "rows outside of the column");
        if (arrays.size() != static_cast<Py_ssize_t>(plan.targets().size())) {
            raise(PyExc_ValueError, "another number of arrays than model inputs");
        }
        std::vector<Buffer> buffers;
        std::vector<char*> items;
        for (std::size_t i = 0; i < plan.targets().size(); ++i) {
            const reader::Target& target = plan.targets()[i];
            buffers.emplace_back(arrays[static_cast<Py_ssize_t>(i)], true);
            const std::int64_t row = target.itemsize * target.elements;
            if (buffers.back().code() != target.code || buffers.back().view().itemsize != target.itemsize ||
                buffers.back().view().len < stop * row) {
                raise(PyExc_ValueError, "an array does not fit its model input");
            }
            items.push_back(buffers.back().data() + start * row);
        }
        std::vector<Ref> owned;
        std::vector<Record> records;
        owned.reserve(static_cast<std::size_t>(stop - start));
        records.reserve(static_cast<std::size_t>(stop - start));
        for (std::int64_t row = start; row < stop; ++row) {
            PyObject* value = values[row];
            if (PyBytes_Check(value)) {
                const std::string_view body = bytes(value);
                owned.push_back(Ref::borrowed(value));
                records.push_back({body.data(), body.data() + body.size()});
            } else {
                records.push_back({nullptr, nullptr});
            }
        }
        std::vector<std::int64_t> left;
        reader::Plan::Pass pass = plan.begin();
        left.reserve(records.size());  // nothing may throw while the interpreter is let go
        Py_BEGIN_ALLOW_THREADS
        for (std::size_t i = 0; i < records.size(); ++i) {
            const bool taken =
                records[i].begin != nullptr && plan.read(records[i].begin, records[i].end, items, pass);
            for (std::size_t t = 0; t < items.size(); ++t) {
                const reader::Target& target = plan.targets()[t];
                const std::int64_t row = target.itemsize * target.elements;
                if (!taken) std::memset(items[t], 0, static_cast<std::size_t>(row));
                items[t] += row;
            }
            if (!taken) left.push_back(start + static_cast<std::int64_t>(i));
        }
        Py_END_ALLOW_THREADS
        Ref rows(PyList_New(static_cast<Py_ssize_t>(left.size())));
        for (std::size_t i = 0; i < left.size(); ++i) {
            PyList_SET_ITEM(rows.get(), static_cast<Py_ssize_t>(i), Ref(PyLong_FromLongLong(left[i])).release());
        }
        return rows.release();
    });
}

PyMethodDef reader_methods[] = {
    {"read", fast(reader_read), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot reader_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(reader_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(reader_dealloc)},
    {Py_tp_methods, reader_methods},
    {0, nullptr},
};
PyType_Spec reader_spec = {"worker.native._records.Reader", sizeof(ReaderObject), 0, Py_TPFLAGS_DEFAULT, reader_slots};

// -- writing -----------------------------------------------------------------------------------------------

PyObject* items(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 3);
        const Buffer buffer(arguments[0], false);
        const writer::Array array = array_of(buffer);
        const std::string_view before = bytes(arguments[1]), after = bytes(arguments[2]);
        writer::Text text;
        Ref texts(PyList_New(array.shape[0]));
        for (std::int64_t row = 0; row < array.shape[0]; ++row) {
            text.clear();
            text.room(before.size());
            text.add(before);
            writer::add_item(text, array, row);
            text.room(after.size());
            text.add(after);
            PyList_SET_ITEM(texts.get(), row, made(text).release());
        }
        return texts.release();
    });
}

PyObject* top(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 4);
        const Buffer buffer(arguments[0], false);
        const writer::Array array = array_of(buffer);
        const List names(arguments[1]);
        const std::int64_t most = integer(arguments[2]);
        const double threshold = PyFloat_AsDouble(arguments[3]);
        if (threshold == -1 && PyErr_Occurred()) throw Raised();
        if (array.shape.size() != 2 || array.shape[1] != names.size() || most < 1 || most > names.size() ||
            (array.code != 'f' && array.code != 'd')) {
            raise(PyExc_ValueError, "scores (rows, classes) in float32 or float64 and a label per class are needed");
        }
        std::vector<std::string_view> labels;
        for (Py_ssize_t i = 0; i < names.size(); ++i) labels.push_back(bytes(names[i]));
        writer::Top best(std::move(labels), most, threshold);
        writer::Text text;
        Ref texts(PyList_New(array.shape[0]));
        for (std::int64_t row = 0; row < array.shape[0]; ++row) {
            text.clear();
            const char* scores = array.data + row * array.shape[1] * array.itemsize;
            const bool finite = array.code == 'f' ? best.add(text, reinterpret_cast<const float*>(scores))
                                                  : best.add(text, reinterpret_cast<const double*>(scores));
            PyList_SET_ITEM(texts.get(), row, (finite ? made(text) : Ref::borrowed(Py_None)).release());
        }
        return texts.release();
    });
}

// Total and largest length of a column of bytes.
PyObject* extent(PyObject*, PyObject* column) {
    return guarded([&]() -> PyObject* {
        const List values(column);
        Py_ssize_t total = 0, largest = 0;
        for (Py_ssize_t row = 0; row < values.size(); ++row) {
            PyObject* value = values[row];
            if (value == Py_None) continue;
            const Py_ssize_t size = PyBytes_Check(value) ? PyBytes_GET_SIZE(value) : PyObject_Size(value);
            if (size < 0) throw Raised();
            total += size;
            largest = std::max(largest, size);
        }
        return Py_BuildValue("(nn)", total, largest);
    });
}

// -- Trace context ------------------------------------------------------------------------------------------

constexpr char NO_CONTEXT = 0, NOT_SAMPLED = 1, SAMPLED = 2;

// Whether all of it are digits from 0 to f, and whether any is another one than 0.
struct Digits {
    bool all, some;
};

Digits digits(const std::string_view text) {
    unsigned char wrong = 0, set = 0;
    for (const char each : text) {  // without a branch: the compiler takes many at once
        const auto c = static_cast<unsigned char>(each);
        const bool decimal = static_cast<unsigned char>(c - '0') < 10, letter = static_cast<unsigned char>(c - 'a') < 6;
        wrong |= static_cast<unsigned char>(!(decimal | letter));
        set |= static_cast<unsigned char>(c != '0');
    }
    return {wrong == 0, set != 0};
}

// What a traceparent says of sampling, by the rules of W3C Trace Context.
char sampling(const std::string_view text) {
    constexpr std::size_t trace = 3, span = 36, flags = 53, end = 55;
    if (text.size() < end || text[trace - 1] != '-' || text[span - 1] != '-' || text[flags - 1] != '-') return NO_CONTEXT;
    const std::string_view version = text.substr(0, 2);
    if (!digits(version).all || version == "ff") return NO_CONTEXT;
    if (text.size() > end && (version == "00" || text[end] != '-')) return NO_CONTEXT;
    for (const std::string_view id : {text.substr(trace, 32), text.substr(span, 16)}) {
        const Digits found = digits(id);
        if (!found.all || !found.some) return NO_CONTEXT;
    }
    if (!digits(text.substr(flags, 2)).all) return NO_CONTEXT;
    const char last = text[end - 1];
    return (last <= '9' ? last - '0' : last - 'a' + 10) & 1 ? SAMPLED : NOT_SAMPLED;
}

// A character for each row: what the last header `traceparent` says.
PyObject* contexts(PyObject*, PyObject* column) {
    return guarded([&]() -> PyObject* {
        const List rows(column);
        const Py_ssize_t count = rows.size();
        Ref found(PyBytes_FromStringAndSize(nullptr, count));
        char* codes = PyBytes_AS_STRING(found.get());
        for (Py_ssize_t row = 0; row < count; ++row) {
            codes[row] = NO_CONTEXT;
            if (rows[row] == Py_None) continue;
            const List headers(rows[row]);
            for (Py_ssize_t i = headers.size(); i-- > 0;) {
                PyObject* pair = headers[i];
                if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) raise(PyExc_TypeError, "a header is a pair");
                PyObject* name = PyTuple_GET_ITEM(pair, 0);
                if (!PyUnicode_Check(name) || PyUnicode_GET_LENGTH(name) != 11 ||
                    PyUnicode_CompareWithASCIIString(name, "traceparent") != 0) {
                    continue;
                }
                PyObject* value = PyTuple_GET_ITEM(pair, 1);
                if (value != Py_None) codes[row] = sampling(bytes(value));
                break;
            }
        }
        return found.release();
    });
}

PyObject* pieces(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 2);
        const Buffer buffer(arguments[0], false);
        const std::string_view before = bytes(arguments[1]);
        const Py_buffer& view = buffer.view();
        if (view.ndim < 1) raise(PyExc_TypeError, "an array of rows is needed");
        const Py_ssize_t rows = view.shape[0], size = rows > 0 ? view.len / rows : 0;
        Ref found(PyList_New(rows));
        for (Py_ssize_t row = 0; row < rows; ++row) {
            Ref piece(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(before.size()) + size));
            char* text = PyBytes_AS_STRING(piece.get());
            if (!before.empty()) std::memcpy(text, before.data(), before.size());
            if (size > 0) std::memcpy(text + before.size(), buffer.data() + row * size, static_cast<std::size_t>(size));
            PyList_SET_ITEM(found.get(), row, piece.release());
        }
        return found.release();
    });
}

PyObject* gather(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 4);
        const List values(arguments[0]);
        const std::int64_t start = integer(arguments[1]), stop = integer(arguments[2]);
        const Buffer buffer(arguments[3], true);
        const Py_buffer& view = buffer.view();
        if (start < 0 || stop < start || stop > values.size() || view.ndim < 1 || stop > view.shape[0]) {
            raise(PyExc_IndexError, "rows outside of the column");
        }
        const Py_ssize_t size = view.shape[0] > 0 ? view.len / view.shape[0] : 0;
        for (std::int64_t row = start; row < stop; ++row) {
            PyObject* value = values[row];
            if (!PyBytes_Check(value) || PyBytes_GET_SIZE(value) != size) return Py_NewRef(Py_False);
            if (size > 0) {
                std::memcpy(buffer.data() + row * size, PyBytes_AS_STRING(value), static_cast<std::size_t>(size));
            }
        }
        return Py_NewRef(Py_True);
    });
}

// The stages of the latency: fixed text, and numbers that differ by row in between.
class Stages {
  public:
    explicit Stages(const List& stages) {
        for (Py_ssize_t i = 0; i < stages.size(); ++i) {
            PyObject *name, *value;
            if (!PyArg_ParseTuple(stages[i], "SO", &name, &value)) throw Raised();
            text_.back() += bytes(name);
            if (PyLong_Check(value)) {
                char number[numbers::FLOAT_TEXT_MAX];
                text_.back().append(number, numbers::write_milliseconds(number, integer(value)));
                continue;
            }
            columns_.emplace_back(value, false);
            const char code = columns_.back().code();
            if ((code != 'l' && code != 'q') || columns_.back().view().itemsize != 8) {
                raise(PyExc_TypeError, "a stage is an integer or a column of int64");
            }
            text_.emplace_back();
        }
        text_.back() += "}}";
        for (const auto& part : text_) room_ += part.size() + numbers::FLOAT_TEXT_MAX;
    }

    void check(Py_ssize_t rows) const {
        for (const auto& column : columns_) {
            if (column.view().len != rows * 8) raise(PyExc_ValueError, "columns of different lengths");
        }
    }
    std::size_t room() const { return room_; }
    void add(writer::Text& text, Py_ssize_t row) const {
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            text.add(text_[i]);
            std::int64_t us;
            std::memcpy(&us, columns_[i].data() + row * 8, 8);
            text.until(numbers::write_milliseconds(text.here(), us));
        }
        text.add(text_.back());
    }

  private:
    std::vector<std::string> text_ = {""};
    std::vector<Buffer> columns_;
    std::size_t room_ = 0;
};

PyObject* bodies(PyObject*, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 8);
        PyObject* head_of = arguments[0];
        const List partitions(arguments[1]), offsets(arguments[2]), timestamps(arguments[3]);
        const bool own_ids = arguments[4] != Py_None;
        const List ids(own_ids ? arguments[4] : arguments[1]);
        const std::string_view model = bytes(arguments[5]);
        const List predictions(arguments[6]);
        const Stages stages{List(arguments[7])};
        const Py_ssize_t rows = partitions.size();
        stages.check(rows);
        constexpr std::string_view id = R"({"id":)", timestamp = R"(,"timestamp_ms":)";
        constexpr std::size_t numbers_room = 3 * 24 + id.size() + timestamp.size() + 4;
        writer::Text text;
        Ref found(PyList_New(rows));
        Ref partition = Ref::borrowed(Py_None), head = Ref::borrowed(Py_None);
        std::string_view before, between;
        for (Py_ssize_t row = 0; row < rows; ++row) {
            if (partitions[row] != partition.get()) {
                partition = Ref::borrowed(partitions[row]);
                head = Ref(PyObject_CallOneArg(head_of, partition.get()));
                PyObject *first, *second;
                if (!PyArg_ParseTuple(head.get(), "SS", &first, &second)) throw Raised();
                before = bytes(first);
                between = bytes(second);
            }
            PyObject* prediction = predictions[row];
            if (!PyBytes_Check(prediction)) {  // a rejection
                PyList_SET_ITEM(found.get(), row, Ref::borrowed(Py_None).release());
                continue;
            }
            const std::string_view fragment = bytes(prediction);
            const std::int64_t offset = integer(offsets[row]), time = integer(timestamps[row]);
            PyObject* own = own_ids ? ids[row] : Py_None;
            const std::string_view own_id = own == Py_None ? std::string_view() : bytes(own);
            text.clear();
            text.room(before.size() + between.size() + own_id.size() + model.size() + fragment.size() +
                      stages.room() + numbers_room);
            if (own == Py_None) {
                text.add(before);
                text.until(numbers::write_integer(text.here(), offset));
                text.add('"');
            } else {
                text.add(id);
                text.add(own_id);
            }
            text.add(between);
            text.until(numbers::write_integer(text.here(), offset));
            text.add(timestamp);
            text.until(numbers::write_integer(text.here(), time));
            text.add(model);
            text.add(fragment);
            stages.add(text, row);
            PyList_SET_ITEM(found.get(), row, made(text).release());
        }
        return found.release();
    });
}

int fill(PyObject* module) {
    PyObject* type = PyType_FromSpec(&reader_spec);
    if (type == nullptr) return -1;
    const int failed = PyModule_AddObjectRef(module, "Reader", type);
    Py_DECREF(type);
    return failed != 0 ? failed : PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

PyMethodDef functions[] = {
    {"extent", extent, METH_O, nullptr},
    {"contexts", contexts, METH_O, nullptr},
    {"pieces", fast(pieces), METH_FASTCALL, nullptr},
    {"gather", fast(gather), METH_FASTCALL, nullptr},
    {"items", fast(items), METH_FASTCALL, nullptr},
    {"top", fast(top), METH_FASTCALL, nullptr},
    {"bodies", fast(bodies), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(fill)},
    {0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_records", nullptr, 0, functions, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__records() { return PyModuleDef_Init(&definition); }
