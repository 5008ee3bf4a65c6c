/* Streaming JSON writer: tracks nesting and commas, escapes strings, writes through a callback. No allocation. */
#ifndef HV_LIB_JSON_H
#define HV_LIB_JSON_H
#include "include/hv/types.h"
#define JSON_MAX_DEPTH 16
struct json_writer {
    void (*put)(const char *s, size_t len, void *arg);
    void *arg;
    unsigned depth;
    uint32_t has_items; /* bit per depth: a comma is due before the next item */
    bool after_key;
};
void json_init(struct json_writer *w, void (*put)(const char *, size_t, void *), void *arg);
void json_object_begin(struct json_writer *w);
void json_object_end(struct json_writer *w);
void json_array_begin(struct json_writer *w);
void json_array_end(struct json_writer *w);
void json_key(struct json_writer *w, const char *key);
void json_string(struct json_writer *w, const char *s); /* invalid UTF-8 and control bytes are escaped */
void json_u64(struct json_writer *w, uint64_t v);
void json_i64(struct json_writer *w, int64_t v);
void json_bool(struct json_writer *w, bool v);
void json_null(struct json_writer *w);
/* key + value in one call */
void json_kv_string(struct json_writer *w, const char *key, const char *s);
void json_kv_u64(struct json_writer *w, const char *key, uint64_t v);
void json_kv_bool(struct json_writer *w, const char *key, bool v);
#endif
