// What both extension modules need of Python: references, lists and bytes, and exceptions both ways.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string_view>
#include <utility>

namespace python {

// A Python exception is set; unwinds to the function that Python called.
struct Raised {};

// A reference of our own.
class Ref {
  public:
    explicit Ref(PyObject* owned) : object_(owned) {
        if (owned == nullptr) throw Raised();
    }
    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref(const Ref&) = delete;
    Ref& operator=(Ref&& other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Ref() { Py_XDECREF(object_); }
    static Ref borrowed(PyObject* object) {
        Py_XINCREF(object);
        return Ref(object);
    }
    PyObject* get() const { return object_; }
    PyObject* release() { return std::exchange(object_, nullptr); }

  private:
    PyObject* object_;
};

[[noreturn]] inline void raise(PyObject* kind, const char* message) {
    PyErr_SetString(kind, message);
    throw Raised();
}

// Runs `body`; C++ exceptions become Python's.
template <typename Body>
PyObject* guarded(Body body) {
    try {
        return body();
    } catch (const Raised&) {
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_SystemError, error.what());
    }
    return nullptr;
}

// A list's items by number. It may change whenever Python code runs, so each access looks again.
class List {
  public:
    explicit List(PyObject* object) : object_(object) {
        if (!PyList_Check(object)) raise(PyExc_TypeError, "a list is needed");
    }
    Py_ssize_t size() const { return PyList_GET_SIZE(object_); }
    PyObject* operator[](Py_ssize_t index) const {
        if (index < 0 || index >= size()) raise(PyExc_IndexError, "columns of different lengths");
        return PyList_GET_ITEM(object_, index);
    }

  private:
    PyObject* object_;
};

inline std::string_view bytes(PyObject* object) {
    if (!PyBytes_Check(object)) raise(PyExc_TypeError, "bytes are needed");
    return {PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object))};
}

inline std::int64_t integer(PyObject* object) {
    const long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) throw Raised();
    return value;
}

inline void check_arguments(Py_ssize_t given, Py_ssize_t wanted) {
    if (given != wanted) raise(PyExc_TypeError, "another number of arguments");
}

inline PyCFunction fast(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

}  // namespace python
