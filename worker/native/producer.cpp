// A producer that takes and acknowledges rows in batches: worker.native._producer. _producer.pyi declares its interface.
//
// It drives librdkafka's producer through the public C interface and the event queue. The thread that polls fetches and
// counts events without the interpreter lock, and reports them to Python afterwards. With transactions there are no
// events for single rows: a commit acknowledges all of them. A commit also serves the queue itself. The log lines and
// errors that it finds there arrive through callbacks, which keep them for the next poll.
#include "python.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "rdkafka.hpp"

using namespace python;

namespace {

constexpr long INTERFACE = 5;
constexpr int EVENTS_MAX = 10000;  // most events per poll, so that a poll cannot exceed its timeout by much
constexpr int FLUSH_STEP_MS = 10;

// The state shared by the rows of one `send`. Owns a reference to the Python receipt. Each unacknowledged row counts as
// one user; so does its place in `Core::news`, and the `send` itself while it runs. Whoever removes the last user
// deletes the ticket.
struct Ticket {
    PyObject* receipt;
    std::atomic<std::int64_t> users{1};
    bool listed = false;  // whether it is in Core::news. Core::polling guards this field and those below.
    std::int64_t delivered = 0;
    std::vector<std::pair<int, std::int64_t>> failed;  // code, rows

    void fail(int code) {
        for (auto& [known, rows] : failed) {
            if (known == code) {
                ++rows;
                return;
            }
        }
        failed.emplace_back(code, 1);
    }
};

struct Notice {
    int kind;  // EVENT_ERROR or EVENT_LOG
    int number;  // code or level
    bool fatal;
    std::string facility, text;
};

// Owns one librdkafka client with its queue, its topics, and the events fetched and not yet reported.
class Core {
  public:
    Core(void* handle, const std::vector<std::pair<std::string, std::string>>& properties) {
#define RDKAFKA_LOAD(name, result, arguments) load(handle, "rd_kafka_" #name, library_.name##_);
        RDKAFKA_FUNCTIONS(RDKAFKA_LOAD)
#undef RDKAFKA_LOAD
        opaque_of = library_.opaque_;
        rdkafka::Conf* conf = library_.conf_new_();
        char reason[512] = "";
        for (const auto& [name, value] : properties) {
            if (library_.conf_set_(conf, name.c_str(), value.c_str(), reason, sizeof reason) != rdkafka::CONF_OK) {
                library_.conf_destroy_(conf);
                throw std::invalid_argument(reason);
            }
        }
        const bool transactions = std::any_of(properties.begin(), properties.end(), [](const auto& property) {
            return property.first == "transactional.id";
        });
        // A commit waits until every delivery report is served. If reports were events, another thread would have to
        // fetch them during the commit.
        const int rows = transactions ? 0 : rdkafka::EVENT_DR;
        library_.conf_set_events_(conf, rows | rdkafka::EVENT_LOG | rdkafka::EVENT_ERROR);
        library_.conf_set_opaque_(conf, this);
        library_.conf_set_log_cb_(conf, on_log);
        library_.conf_set_error_cb_(conf, on_error);
        client_ = library_.new_(rdkafka::PRODUCER, conf, reason, sizeof reason);
        if (client_ == nullptr) {
            library_.conf_destroy_(conf);
            throw std::invalid_argument(reason);
        }
        queue_ = library_.queue_get_main_(client_);
        library_.set_log_queue_(client_, nullptr);
    }
    Core(const Core&) = delete;
    Core& operator=(const Core&) = delete;
    ~Core() { close(); }

    const rdkafka::Library& library() const { return library_; }
    rdkafka::Client* client() const { return client_; }

    // Closes the client and discards rows that are not acknowledged. Waits for librdkafka's threads.
    void close() {
        if (client_ == nullptr) return;
        for (auto& [name, topic] : topics_) library_.topic_destroy_(topic);
        topics_.clear();
        library_.queue_destroy_(queue_);
        library_.destroy_(client_);
        client_ = nullptr;
    }

    rdkafka::Topic* topic(const std::string& name) {
        const auto found = topics_.find(name);
        if (found != topics_.end()) return found->second;
        rdkafka::Topic* made = library_.topic_new_(client_, name.c_str(), nullptr);
        if (made == nullptr) throw std::invalid_argument(library_.err2str_(library_.last_error_()));
        return topics_.emplace(name, made).first->second;
    }

    // Fetches the events that have arrived; waits up to `timeout_ms` for the first. The caller must hold `polling`.
    void fetch(int timeout_ms) {
        for (int served = 0; served < EVENTS_MAX; ++served) {
            rdkafka::Event* event = library_.queue_poll_(queue_, served == 0 ? timeout_ms : 0);
            if (event == nullptr) return;
            take(event);
            library_.event_destroy_(event);
        }
    }

    std::vector<Notice> noticed() {
        const std::lock_guard<std::mutex> lock(noticing_);
        return std::exchange(notices_, {});
    }

    std::mutex polling;
    std::vector<Ticket*> news;

  private:
    void notice(Notice made) {
        const std::lock_guard<std::mutex> lock(noticing_);
        notices_.push_back(std::move(made));
    }

    void notice_error(int code, const char* said) {
        std::string text = said == nullptr ? "" : said;
        const bool fatal = code == rdkafka::FATAL;
        if (fatal) {
            char reason[512] = "";
            code = library_.fatal_error_(client_, reason, sizeof reason);
            text = reason;
        }
        notice({rdkafka::EVENT_ERROR, code, fatal, "", text});
    }

    static void on_log(const rdkafka::Client* client, int level, const char* facility, const char* text) {
        Core* core = static_cast<Core*>(opaque_of(client));
        core->notice({rdkafka::EVENT_LOG, level, false, facility, text});
    }

    static void on_error(rdkafka::Client*, int code, const char* said, void* core) {
        static_cast<Core*>(core)->notice_error(code, said);
    }

    template <typename Function>
    void load(void* handle, const char* name, Function& function) {
        void* found = dlsym(handle, name);
        if (found == nullptr) throw std::invalid_argument(std::string("the library has no ") + name);
        function = reinterpret_cast<Function>(found);
    }

    void take(rdkafka::Event* event) {
        switch (library_.event_type_(event)) {
            case rdkafka::EVENT_DR:
                while (const rdkafka::Message* message = library_.event_message_next_(event)) {
                    Ticket* ticket = static_cast<Ticket*>(message->opaque);
                    if (ticket == nullptr) continue;
                    if (!ticket->listed) {
                        news.push_back(ticket);
                        ticket->listed = true;  // the place in `news` takes over this row's use
                    } else {
                        --ticket->users;
                    }
                    if (message->err == rdkafka::NO_ERROR) {
                        ++ticket->delivered;
                    } else {
                        ticket->fail(message->err);
                    }
                }
                break;
            case rdkafka::EVENT_ERROR:
                notice_error(library_.event_error_(event), library_.event_error_string_(event));
                break;
            case rdkafka::EVENT_LOG: {
                const char *facility = "", *text = "";
                int level = 7;
                if (library_.event_log_(event, &facility, &text, &level) == 0) {
                    notice({rdkafka::EVENT_LOG, level, false, facility, text});
                }
                break;
            }
            default:
                break;
        }
    }

    // A log callback gets the client only, and needs this function to find its Core. All clients use one library.
    static inline void* (*opaque_of)(const rdkafka::Client*) = nullptr;

    rdkafka::Library library_{};
    rdkafka::Client* client_ = nullptr;
    rdkafka::Queue* queue_ = nullptr;
    std::unordered_map<std::string, rdkafka::Topic*> topics_;
    std::mutex noticing_;
    std::vector<Notice> notices_;
};

struct ProducerObject {
    PyObject_HEAD
    Core* core;
    std::unordered_set<Ticket*>* tickets;  // all existing tickets; guarded by the interpreter lock
    Py_ssize_t calls;  // calls in progress, which may run without the interpreter lock: close() is refused meanwhile
};

ProducerObject& of(PyObject* self) { return *reinterpret_cast<ProducerObject*>(self); }

// Owns one entry in ProducerObject::calls: while a Using exists, the client cannot be closed.
class Using {
  public:
    explicit Using(PyObject* self) : self_(of(self)) {
        if (self_.core == nullptr || self_.core->client() == nullptr) raise(PyExc_RuntimeError, "the producer is closed");
        ++self_.calls;
    }
    Using(const Using&) = delete;
    Using& operator=(const Using&) = delete;
    ~Using() { --self_.calls; }
    Core& core() const { return *self_.core; }

  private:
    ProducerObject& self_;
};

void end(ProducerObject& producer, Ticket* ticket) {
    producer.tickets->erase(ticket);
    Py_XDECREF(ticket->receipt);
    delete ticket;
}

#if PY_VERSION_HEX >= 0x030D0000
inline bool interpreter_ends() { return Py_IsFinalizing() != 0; }
#else
inline bool interpreter_ends() { return _Py_IsFinalizing() != 0; }
#endif

// Owns the released interpreter lock: releases it when constructed, takes it again when destroyed, also after an
// exception. If the interpreter is finalizing by then, the thread sleeps in the destructor: Python before 3.14 would end
// it by unwinding its stack, and C++ would call std::terminate. The thread that finalizes the interpreter itself, and
// closes a client meanwhile, continues.
class LetGo {
  public:
    LetGo() : ends_it_(interpreter_ends()), state_(PyEval_SaveThread()) {}
    LetGo(const LetGo&) = delete;
    LetGo& operator=(const LetGo&) = delete;
    ~LetGo() {
        while (interpreter_ends() && !ends_it_) std::this_thread::sleep_for(std::chrono::hours(1));
        PyEval_RestoreThread(state_);
    }

  private:
    const bool ends_it_;
    PyThreadState* state_;
};

std::string text_of(PyObject* object) {
    Py_ssize_t length;
    const char* text = PyUnicode_AsUTF8AndSize(object, &length);
    if (text == nullptr) throw Raised();
    return {text, static_cast<std::size_t>(length)};
}

int milliseconds(PyObject* object) {
    return static_cast<int>(std::clamp<std::int64_t>(integer(object), 0, 1 << 30));
}

PyObject* producer_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
    return guarded([&]() -> PyObject* {
        unsigned long long handle;
        PyObject* given;
        if (!PyArg_ParseTuple(arguments, "KO!", &handle, &PyDict_Type, &given)) throw Raised();
        std::vector<std::pair<std::string, std::string>> properties;
        PyObject *name, *value;
        Py_ssize_t position = 0;
        while (PyDict_Next(given, &position, &name, &value)) properties.emplace_back(text_of(name), text_of(value));
        Ref self(type->tp_alloc(type, 0));
        of(self.get()).tickets = new std::unordered_set<Ticket*>;
        try {
            const LetGo meanwhile;
            of(self.get()).core = new Core(reinterpret_cast<void*>(static_cast<std::uintptr_t>(handle)), properties);
        } catch (const std::invalid_argument& error) {
            raise(PyExc_ValueError, error.what());
        }
        return self.release();
    });
}

void producer_end(ProducerObject& producer) {
    Core* core = std::exchange(producer.core, nullptr);
    if (core != nullptr) {
        const LetGo meanwhile;
        delete core;
    }
    if (producer.tickets != nullptr) {
        while (!producer.tickets->empty()) end(producer, *producer.tickets->begin());
    }
}

void producer_dealloc(PyObject* self) {
    PyTypeObject* type = Py_TYPE(self);
    producer_end(of(self));
    delete of(self).tickets;
    type->tp_free(self);
    Py_DECREF(type);
}

// Owns the use that a running `send` has of its ticket; `use` adds the rows to the ticket's users.
class Rows {
  public:
    Rows(ProducerObject& producer, PyObject* receipt) : producer_(producer) {
        if (receipt == Py_None) return;
        auto made = std::make_unique<Ticket>();
        producer.tickets->insert(made.get());
        ticket_ = made.release();
        Py_INCREF(receipt);
        ticket_->receipt = receipt;
    }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;
    ~Rows() { use(-1); }

    Ticket* ticket() const { return ticket_; }
    void use(std::int64_t rows) {
        if (ticket_ != nullptr && (ticket_->users += rows) == 0) end(producer_, ticket_);
    }

  private:
    ProducerObject& producer_;
    Ticket* ticket_ = nullptr;
};

// Counts the rows taken, and keeps (row, code) of those among them that librdkafka refuses for good.
class Taken {
  public:
    // False if the queue is full: the caller must send this row and all later ones again.
    bool count(std::int64_t row, int code) {
        if (code == rdkafka::QUEUE_FULL) return false;
        if (code != rdkafka::NO_ERROR) refused_.emplace_back(row, code);
        ++taken_;
        return true;
    }
    std::int64_t accepted() const { return taken_ - static_cast<std::int64_t>(refused_.size()); }
    PyObject* told() const {
        Ref rows(PyList_New(static_cast<Py_ssize_t>(refused_.size())));
        for (std::size_t i = 0; i < refused_.size(); ++i) {
            Ref pair(Py_BuildValue("(Li)", static_cast<long long>(refused_[i].first), refused_[i].second));
            PyList_SET_ITEM(rows.get(), static_cast<Py_ssize_t>(i), pair.release());
        }
        return Py_BuildValue("(LO)", static_cast<long long>(taken_), rows.get());
    }

  private:
    std::int64_t taken_ = 0;
    std::vector<std::pair<std::int64_t, int>> refused_;
};

struct Part {
    const void* data;
    std::size_t size;
};

// The data of a bytes object; null for None.
Part part(PyObject* object) {
    if (object == Py_None) return {nullptr, 0};
    const std::string_view text = bytes(object);
    return {text.data(), text.size()};
}

// Queues rows in order until the queue is full; librdkafka sets the result of each row in its `err`. Each call takes
// neighbouring rows that are all placed by key, or all have the same partition. If one call had both, and the topic were
// not known yet, librdkafka would add partition -1 to the transaction, which then fails (rd_kafka_produce_batch with
// RD_KAFKA_MSG_F_PARTITION).
void queue(const rdkafka::Library& library, rdkafka::Topic* topic, std::vector<rdkafka::Message>& messages) {
    auto first = messages.begin();
    while (first != messages.end()) {
        const std::int32_t partition = first->partition;
        const auto last = std::find_if(first, messages.end(), [&](const auto& row) { return row.partition != partition; });
        library.produce_batch_(topic, partition, rdkafka::COPY, &*first, static_cast<int>(last - first));
        if (std::prev(last)->err == rdkafka::QUEUE_FULL) {
            // the queue may have room again by now, but later rows must not overtake this one
            std::for_each(last, messages.end(), [](auto& row) { row.err = rdkafka::QUEUE_FULL; });
            return;
        }
        first = last;
    }
}

PyObject* producer_send(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 6);
        const Using use(self);
        const std::string name = text_of(arguments[0]);
        const auto partition = static_cast<std::int32_t>(integer(arguments[1]));
        const bool by_key = PyObject_IsTrue(arguments[2]) == 1;
        const List values(arguments[3]), keys(arguments[4]);
        const Py_ssize_t count = values.size();
        if (keys.size() != count || partition < 0 || count > (1 << 30)) {
            raise(PyExc_ValueError, "columns of different lengths, or no partition");
        }
        std::vector<rdkafka::Message> messages(static_cast<std::size_t>(count));
        std::vector<Ref> owned;  // keeps the bytes that the messages point to, while the interpreter lock is released
        owned.reserve(static_cast<std::size_t>(count) * 2);
        Rows rows(of(self), arguments[5]);
        for (Py_ssize_t row = 0; row < count; ++row) {
            rdkafka::Message& message = messages[static_cast<std::size_t>(row)];
            const Part value = part(values[row]), key = part(keys[row]);
            message.payload = const_cast<void*>(value.data);
            message.len = value.size;
            message.key = const_cast<void*>(key.data);
            message.key_len = key.size;
            message.opaque = rows.ticket();
            message.partition = by_key && key.data != nullptr ? rdkafka::BY_KEY : partition;
            if (value.data != nullptr) owned.push_back(Ref::borrowed(values[row]));
            if (key.data != nullptr) owned.push_back(Ref::borrowed(keys[row]));
        }
        try {
            use.core().topic(name);
        } catch (const std::invalid_argument& error) {
            raise(PyExc_ValueError, error.what());
        }
        rows.use(count);
        {
            rdkafka::Topic* topic = use.core().topic(name);
            const LetGo meanwhile;
            queue(use.core().library(), topic, messages);
        }
        Taken taken;
        for (Py_ssize_t row = 0; row < count; ++row) {
            if (!taken.count(row, messages[static_cast<std::size_t>(row)].err)) break;
        }
        rows.use(taken.accepted() - count);
        return taken.told();
    });
}

// Owns the headers of one row until the producer accepts the row and becomes their owner.
class Headers {
  public:
    Headers(const rdkafka::Library& library, PyObject* given) : library_(library) {
        if (given == Py_None) return;
        const List headers(given);
        if (headers.size() == 0) return;
        list_ = library.headers_new_(static_cast<std::size_t>(headers.size()));
        try {
            for (Py_ssize_t i = 0; i < headers.size(); ++i) {
                PyObject *name, *value;
                if (!PyArg_ParseTuple(headers[i], "UO", &name, &value)) throw Raised();
                const std::string key = text_of(name);
                const Part content = part(value);
                library.header_add_(list_, key.data(), static_cast<std::ptrdiff_t>(key.size()), content.data,
                                    static_cast<std::ptrdiff_t>(content.size));
            }
        } catch (...) {
            library_.headers_destroy_(list_);
            throw;
        }
    }
    Headers(const Headers&) = delete;
    Headers& operator=(const Headers&) = delete;
    ~Headers() {
        if (list_ != nullptr) library_.headers_destroy_(list_);
    }
    rdkafka::HeaderList* list() const { return list_; }
    void taken() { list_ = nullptr; }

  private:
    const rdkafka::Library& library_;
    rdkafka::HeaderList* list_ = nullptr;
};

PyObject* producer_send_headed(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 8);
        const Using use(self);
        const rdkafka::Library& library = use.core().library();
        const auto partition = static_cast<std::int32_t>(integer(arguments[1]));
        const bool by_key = PyObject_IsTrue(arguments[2]) == 1;
        const List values(arguments[3]), keys(arguments[4]), headers(arguments[5]);
        const std::int64_t timestamp_ms = integer(arguments[6]);
        const Py_ssize_t count = values.size();
        if (keys.size() != count || headers.size() != count || partition < 0) {
            raise(PyExc_ValueError, "columns of different lengths, or no partition");
        }
        rdkafka::Topic* topic;
        try {
            topic = use.core().topic(text_of(arguments[0]));
        } catch (const std::invalid_argument& error) {
            raise(PyExc_ValueError, error.what());
        }
        Rows rows(of(self), arguments[7]);
        Taken taken;
        for (Py_ssize_t row = 0; row < count; ++row) {
            const Part value = part(values[row]), key = part(keys[row]);
            Headers head(library, headers[row]);
            const std::int32_t to = by_key && key.data != nullptr ? rdkafka::BY_KEY : partition;
            rows.use(1);
            const int code = library.producev_(
                use.core().client(), rdkafka::V_RKT, topic, rdkafka::V_PARTITION, to, rdkafka::V_MSGFLAGS,
                rdkafka::COPY, rdkafka::V_VALUE, value.data, value.size, rdkafka::V_KEY, key.data, key.size,
                rdkafka::V_OPAQUE, static_cast<void*>(rows.ticket()), rdkafka::V_TIMESTAMP, timestamp_ms,
                head.list() != nullptr ? rdkafka::V_HEADERS : rdkafka::V_END, head.list(), rdkafka::V_END);
            if (code == rdkafka::NO_ERROR) {
                head.taken();
            } else {
                rows.use(-1);
            }
            if (!taken.count(row, code)) break;
        }
        return taken.told();
    });
}

// The fetched events as a list of tuples. Afterwards the tickets in `news` are no longer listed.
PyObject* told(ProducerObject& producer, const std::vector<Ticket*>& news, const std::vector<Notice>& notices) {
    PyObject* events = PyList_New(0);
    const auto add = [&](PyObject* event) {
        if (event == nullptr || events == nullptr || PyList_Append(events, event) != 0) Py_CLEAR(events);
        Py_XDECREF(event);
    };
    for (const Notice& notice : notices) {
        if (notice.kind == rdkafka::EVENT_LOG) {
            add(Py_BuildValue("(siss)", "log", notice.number, notice.facility.c_str(), notice.text.c_str()));
        } else {
            add(Py_BuildValue("(sisO)", "error", notice.number, notice.text.c_str(), notice.fatal ? Py_True : Py_False));
        }
    }
    for (Ticket* ticket : news) {
        if (ticket->delivered > 0) {
            add(Py_BuildValue("(sOLi)", "rows", ticket->receipt, static_cast<long long>(ticket->delivered), 0));
        }
        for (const auto& [code, rows] : ticket->failed) {
            add(Py_BuildValue("(sOLi)", "rows", ticket->receipt, static_cast<long long>(rows), code));
        }
        ticket->delivered = 0;
        ticket->failed.clear();
        ticket->listed = false;
        if (--ticket->users == 0) end(producer, ticket);
    }
    return events;
}

PyObject* producer_poll(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 1);
        const Using use(self);
        const int timeout_ms = milliseconds(arguments[0]);
        Core& core = use.core();
        std::unique_lock<std::mutex> polling(core.polling, std::defer_lock);
        {
            const LetGo meanwhile;
            polling.lock();
            core.fetch(timeout_ms);
        }
        const std::vector<Ticket*> news = std::exchange(core.news, {});
        const std::vector<Notice> notices = core.noticed();
        return told(of(self), news, notices);
    });
}

PyObject* producer_hurry(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        const Using use(self);
        {
            const LetGo meanwhile;
            use.core().library().flush_(use.core().client(), FLUSH_STEP_MS);
        }
        return Py_NewRef(Py_None);
    });
}

PyObject* producer_purge(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        const Using use(self);
        {
            const LetGo meanwhile;
            use.core().library().purge_(use.core().client(), rdkafka::PURGE_QUEUE | rdkafka::PURGE_INFLIGHT);
        }
        return Py_NewRef(Py_None);
    });
}

PyObject* producer_waiting(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        const Using use(self);
        return PyLong_FromLong(use.core().library().outq_len_(use.core().client()));
    });
}

PyObject* producer_name(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        const Using use(self);
        return PyUnicode_FromString(use.core().library().name_(use.core().client()));
    });
}

PyObject* producer_text(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 1);
        const Using use(self);
        return PyUnicode_FromString(use.core().library().err2str_(static_cast<int>(integer(arguments[0]))));
    });
}

// Makes one transactional call. Returns None on success, else (code, text, fatal, retriable, whether the transaction
// must be aborted).
template <typename Call>
PyObject* transactional(PyObject* self, Call call) {
    const Using use(self);
    const rdkafka::Library& library = use.core().library();
    rdkafka::Error* error;
    {
        const LetGo meanwhile;
        error = call(library, use.core().client());
    }
    if (error == nullptr) return Py_NewRef(Py_None);
    const auto flag = [](int set) { return set != 0 ? Py_True : Py_False; };
    PyObject* told = Py_BuildValue("(isOOO)", library.error_code_(error), library.error_string_(error),
                                   flag(library.error_is_fatal_(error)), flag(library.error_is_retriable_(error)),
                                   flag(library.error_txn_requires_abort_(error)));
    library.error_destroy_(error);
    return told;
}

PyObject* producer_init_transactions(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 1);
        return transactional(self, [timeout_ms = milliseconds(arguments[0])](const auto& library, auto* client) {
            return library.init_transactions_(client, timeout_ms);
        });
    });
}

PyObject* producer_begin_transaction(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        return transactional(
            self, [](const auto& library, auto* client) { return library.begin_transaction_(client); });
    });
}

PyObject* producer_commit_transaction(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 1);
        return transactional(self, [timeout_ms = milliseconds(arguments[0])](const auto& library, auto* client) {
            return library.commit_transaction_(client, timeout_ms);
        });
    });
}

PyObject* producer_abort_transaction(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 1);
        return transactional(self, [timeout_ms = milliseconds(arguments[0])](const auto& library, auto* client) {
            return library.abort_transaction_(client, timeout_ms);
        });
    });
}

struct Position {
    std::string topic;
    std::int32_t partition;
    std::int64_t offset;
    std::string metadata;
};

// Builds the arguments of rd_kafka_send_offsets_to_transaction, makes the call and frees them.
rdkafka::Error* send_positions(const rdkafka::Library& library, rdkafka::Client* client,
                               const std::vector<Position>& positions, std::string_view group, int timeout_ms) {
    rdkafka::GroupMetadata* read = nullptr;
    if (rdkafka::Error* error = library.consumer_group_metadata_read_(&read, group.data(), group.size())) return error;
    rdkafka::TopicPartitionList* list = library.topic_partition_list_new_(static_cast<int>(positions.size()));
    for (const Position& position : positions) {
        auto* place = library.topic_partition_list_add_(list, position.topic.c_str(), position.partition);
        place->offset = position.offset;
        place->metadata = library.mem_malloc_(client, position.metadata.size() + 1);
        std::copy_n(position.metadata.c_str(), position.metadata.size() + 1, static_cast<char*>(place->metadata));
        place->metadata_size = position.metadata.size();
    }
    rdkafka::Error* error = library.send_offsets_to_transaction_(client, list, read, timeout_ms);
    library.topic_partition_list_destroy_(list);
    library.consumer_group_metadata_destroy_(read);
    return error;
}

PyObject* producer_send_offsets(PyObject* self, PyObject* const* arguments, Py_ssize_t given) {
    return guarded([&]() -> PyObject* {
        check_arguments(given, 3);
        const List offsets(arguments[0]);
        std::vector<Position> positions;
        for (Py_ssize_t i = 0; i < offsets.size(); ++i) {
            PyObject *topic, *metadata;
            int partition;
            long long offset;
            if (!PyArg_ParseTuple(offsets[i], "UiLU", &topic, &partition, &offset, &metadata)) throw Raised();
            positions.push_back({text_of(topic), partition, offset, text_of(metadata)});
        }
        const Ref group = Ref::borrowed(arguments[1]);  // its bytes are read while the interpreter lock is released
        const std::string_view written = bytes(group.get());
        const int timeout_ms = milliseconds(arguments[2]);
        return transactional(self, [&](const auto& library, auto* client) {
            return send_positions(library, client, positions, written, timeout_ms);
        });
    });
}

PyObject* producer_close(PyObject* self, PyObject*) {
    return guarded([&]() -> PyObject* {
        if (of(self).calls > 0) raise(PyExc_RuntimeError, "the producer is in use");
        producer_end(of(self));
        return Py_NewRef(Py_None);
    });
}

PyMethodDef methods[] = {
    {"send", fast(producer_send), METH_FASTCALL, nullptr},
    {"send_headed", fast(producer_send_headed), METH_FASTCALL, nullptr},
    {"poll", fast(producer_poll), METH_FASTCALL, nullptr},
    {"hurry", producer_hurry, METH_NOARGS, nullptr},
    {"purge", producer_purge, METH_NOARGS, nullptr},
    {"waiting", producer_waiting, METH_NOARGS, nullptr},
    {"init_transactions", fast(producer_init_transactions), METH_FASTCALL, nullptr},
    {"begin_transaction", producer_begin_transaction, METH_NOARGS, nullptr},
    {"send_offsets", fast(producer_send_offsets), METH_FASTCALL, nullptr},
    {"commit_transaction", fast(producer_commit_transaction), METH_FASTCALL, nullptr},
    {"abort_transaction", fast(producer_abort_transaction), METH_FASTCALL, nullptr},
    {"name", producer_name, METH_NOARGS, nullptr},
    {"text", fast(producer_text), METH_FASTCALL, nullptr},
    {"close", producer_close, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot type_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(producer_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(producer_dealloc)},
    {Py_tp_methods, methods},
    {0, nullptr},
};
PyType_Spec type_spec = {"worker.native._producer.Producer", sizeof(ProducerObject), 0, Py_TPFLAGS_DEFAULT, type_slots};

int fill(PyObject* module) {
    PyObject* type = PyType_FromSpec(&type_spec);
    if (type == nullptr) return -1;
    const int failed = PyModule_AddObjectRef(module, "Producer", type);
    Py_DECREF(type);
    return failed != 0 ? failed : PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(fill)},
    {0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_producer", nullptr, 0, nullptr, module_slots, nullptr, nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__producer() { return PyModuleDef_Init(&definition); }
