// The part of librdkafka's public C interface that a producer needs, found in the library that the confluent-kafka
// package brings along: no header and no second copy of the library are needed to build or to run this.
// Types and numbers are those of rdkafka.h (github.com/confluentinc/librdkafka), which keeps them from version to
// version: https://github.com/confluentinc/librdkafka/blob/master/INTRODUCTION.md
#pragma once

#include <cstddef>
#include <cstdint>

namespace rdkafka {

struct Client;
struct Conf;
struct Topic;
struct TopicConf;
struct Queue;
struct Event;
struct HeaderList;
struct Error;
struct GroupMetadata;

// rd_kafka_message_t
struct Message {
    int err;
    Topic* topic;
    std::int32_t partition;
    void* payload;
    std::size_t len;
    void* key;
    std::size_t key_len;
    std::int64_t offset;
    void* opaque;
};

// rd_kafka_topic_partition_t
struct TopicPartition {
    char* topic;
    std::int32_t partition;
    std::int64_t offset;
    void* metadata;  // freed with the list
    std::size_t metadata_size;
    void* opaque;
    int err;
    void* internal;
};

struct TopicPartitionList;

using LogCallback = void (*)(const Client*, int, const char*, const char*);
using ErrorCallback = void (*)(Client*, int, const char*, void*);

constexpr int PRODUCER = 0;
constexpr int CONF_OK = 0;
constexpr std::int32_t BY_KEY = -1;  // RD_KAFKA_PARTITION_UA
constexpr int COPY = 0x2;
constexpr int PURGE_QUEUE = 0x1, PURGE_INFLIGHT = 0x2;
constexpr int EVENT_DR = 0x1, EVENT_LOG = 0x4, EVENT_ERROR = 0x8;
constexpr int NO_ERROR = 0, QUEUE_FULL = -184, FATAL = -150;
constexpr int V_END = 0, V_RKT = 2, V_PARTITION = 3, V_VALUE = 4, V_KEY = 5, V_OPAQUE = 6, V_MSGFLAGS = 7,
              V_TIMESTAMP = 8, V_HEADERS = 10;

// Every function by its name in the library, less the `rd_kafka_`.
#define RDKAFKA_FUNCTIONS(F)                                                                           \
    F(version, int, (void))                                                                            \
    F(err2str, const char*, (int))                                                                     \
    F(last_error, int, (void))                                                                         \
    F(conf_new, Conf*, (void))                                                                         \
    F(conf_set, int, (Conf*, const char*, const char*, char*, std::size_t))                            \
    F(conf_set_events, void, (Conf*, int))                                                             \
    F(conf_set_log_cb, void, (Conf*, LogCallback))                                                     \
    F(conf_set_error_cb, void, (Conf*, ErrorCallback))                                                 \
    F(conf_set_opaque, void, (Conf*, void*))                                                           \
    F(conf_destroy, void, (Conf*))                                                                     \
    F(new, Client*, (int, Conf*, char*, std::size_t))                                                  \
    F(destroy, void, (Client*))                                                                        \
    F(name, const char*, (const Client*))                                                              \
    F(opaque, void*, (const Client*))                                                                  \
    F(set_log_queue, int, (Client*, Queue*))                                                           \
    F(topic_new, Topic*, (Client*, const char*, TopicConf*))                                           \
    F(topic_destroy, void, (Topic*))                                                                   \
    F(produce_batch, int, (Topic*, std::int32_t, int, Message*, int))                                  \
    F(producev, int, (Client*, ...))                                                                   \
    F(headers_new, HeaderList*, (std::size_t))                                                         \
    F(headers_destroy, void, (HeaderList*))                                                            \
    F(header_add, int, (HeaderList*, const char*, std::ptrdiff_t, const void*, std::ptrdiff_t))        \
    F(queue_get_main, Queue*, (Client*))                                                               \
    F(queue_destroy, void, (Queue*))                                                                   \
    F(queue_poll, Event*, (Queue*, int))                                                               \
    F(event_type, int, (const Event*))                                                                 \
    F(event_destroy, void, (Event*))                                                                   \
    F(event_message_next, const Message*, (Event*))                                                    \
    F(event_error, int, (Event*))                                                                      \
    F(event_error_string, const char*, (Event*))                                                       \
    F(event_log, int, (Event*, const char**, const char**, int*))                                      \
    F(fatal_error, int, (Client*, char*, std::size_t))                                                 \
    F(flush, int, (Client*, int))                                                                      \
    F(purge, int, (Client*, int))                                                                      \
    F(outq_len, int, (Client*))                                                                        \
    F(init_transactions, Error*, (Client*, int))                                                       \
    F(begin_transaction, Error*, (Client*))                                                            \
    F(send_offsets_to_transaction, Error*, (Client*, const TopicPartitionList*, const GroupMetadata*, int)) \
    F(commit_transaction, Error*, (Client*, int))                                                      \
    F(abort_transaction, Error*, (Client*, int))                                                       \
    F(error_code, int, (const Error*))                                                                 \
    F(error_string, const char*, (const Error*))                                                       \
    F(error_is_fatal, int, (const Error*))                                                             \
    F(error_is_retriable, int, (const Error*))                                                         \
    F(error_txn_requires_abort, int, (const Error*))                                                   \
    F(error_destroy, void, (Error*))                                                                   \
    F(topic_partition_list_new, TopicPartitionList*, (int))                                            \
    F(topic_partition_list_add, TopicPartition*, (TopicPartitionList*, const char*, std::int32_t))     \
    F(topic_partition_list_destroy, void, (TopicPartitionList*))                                       \
    F(mem_malloc, void*, (Client*, std::size_t))                                                       \
    F(consumer_group_metadata_read, Error*, (GroupMetadata**, const void*, std::size_t))               \
    F(consumer_group_metadata_destroy, void, (GroupMetadata*))

struct Library {
#define RDKAFKA_MEMBER(name, result, arguments) result(*name##_) arguments;
    RDKAFKA_FUNCTIONS(RDKAFKA_MEMBER)
#undef RDKAFKA_MEMBER
};

}  // namespace rdkafka
