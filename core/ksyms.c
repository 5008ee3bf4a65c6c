/*
 * Names for backtraces. Addresses and names as plain arrays were a twelfth of the image; packed (tools/gen-ksyms) they are a third of that.
 *
 * A packed table can not be searched by halves, so it is read from its front, which takes some ten thousand steps: nothing beside the
 * serial port that the name is printed on. It is read in a panic, when memory may have been overwritten, so it is not believed: every
 * step checks that it stays inside, a pair may only stand for smaller codes (so each expansion ends), and what is wrong ends the search
 * without a name. Nothing is allocated; the stack holds one name and one pair per character of it at the most.
 */
#include "core/ksyms.h"
#include "include/abi/boot_info.h"
#include "lib/string.h"

extern const uint32_t ksym_first, ksym_table_bytes, ksym_character_count, ksym_pair_count; /* tools/gen-ksyms */
extern const uint8_t ksym_characters[], ksym_pairs[], ksym_table[];

/* Seven bits a byte, low ones first. */
static bool take_number(const struct ksym_table *t, uint32_t *at, uint32_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 28 && *at < t->bytes; shift += 7) {
        uint8_t byte = t->functions[(*at)++];
        *value |= (uint32_t)(byte & 127) << shift;
        if (byte < 128)
            return true;
    }
    return false;
}

/* One code's characters, appended at *len. False: damaged, or longer than a name can be. */
static bool expand(const struct ksym_table *t, uint8_t code, char *name, size_t *len)
{
    uint8_t waiting[KSYM_NAME_MAX];
    size_t depth = 0;
    waiting[depth++] = code;
    while (depth) {
        code = waiting[--depth];
        if (code < t->character_count) {
            if (*len == KSYM_NAME_MAX)
                return false;
            name[(*len)++] = (char)t->characters[code];
            continue;
        }
        uint32_t pair = code - t->character_count;
        if (pair >= t->pair_count || depth + 2 > sizeof(waiting))
            return false;
        waiting[depth++] = t->pairs[2 * pair + 1];
        waiting[depth++] = t->pairs[2 * pair];
        if (waiting[depth - 1] >= code || waiting[depth - 2] >= code)
            return false;
    }
    return true;
}

static bool take_name(const struct ksym_table *t, uint32_t *at, char name[KSYM_NAME_MAX])
{
    size_t len = 0;
    do {
        if (*at == t->bytes || !expand(t, t->functions[(*at)++], name, &len))
            return false;
    } while (name[len - 1]);
    return true;
}

bool ksym_find(const struct ksym_table *t, uint64_t addr, struct ksym *out)
{
    if (addr < t->base)
        return false;
    uint64_t offset = addr - t->base;
    for (uint32_t at = 0; at < t->bytes; offset -= out->size) {
        if (!take_number(t, &at, &out->size) || !take_name(t, &at, out->name))
            return false;
        if (offset < out->size) {
            out->offset = (uint32_t)offset;
            return true;
        }
    }
    return false;
}

const char *ksym_format(char *buf, size_t size, uint64_t addr)
{
    const struct ksym_table t = {HV_LINK_BASE + ksym_first, ksym_table_bytes, ksym_character_count, ksym_pair_count,
                                 ksym_characters, ksym_pairs, ksym_table};
    struct ksym s;
    if (ksym_find(&t, addr, &s))
        snprintf(buf, size, "%s+%#x/%#x", s.name, s.offset, s.size);
    else
        snprintf(buf, size, "%#lx", addr);
    return buf;
}
