/* Sets of CPUs as text: ranges in ascending or any order, because people write "2,0-1" too. Printed in ascending order. */
#include "lib/cpuset.h"

#include "lib/string.h"

static bool parse_number(const char **p, unsigned *out)
{
    unsigned n = 0, digits = 0;
    for (; **p >= '0' && **p <= '9' && digits < 4; (*p)++, digits++)
        n = n * 10 + (unsigned)(**p - '0');
    *out = n;
    return digits && n < CPUSET_MAX;
}

bool cpu_set_parse(struct cpu_set *s, const char *text)
{
    memset(s, 0, sizeof(*s));
    if (!strcmp(text, "all")) {
        cpu_set_fill(s);
        return true;
    }
    for (const char *p = text;; p++) {
        unsigned first, last;
        if (!parse_number(&p, &first))
            return false;
        last = first;
        if (*p == '-') {
            p++;
            if (!parse_number(&p, &last) || last < first)
                return false;
        }
        for (unsigned n = first; n <= last; n++)
            cpu_set_add(s, n);
        if (!*p)
            return true;
        if (*p != ',')
            return false;
    }
}

void cpu_set_format(const struct cpu_set *s, unsigned count, char *out, size_t size)
{
    size_t used = 0;
    if (size)
        out[0] = '\0';
    for (unsigned n = 0; n < count && n < CPUSET_MAX && used < size; n++) {
        unsigned first = n;
        if (!cpu_set_has(s, n))
            continue;
        while (n + 1 < count && n + 1 < CPUSET_MAX && cpu_set_has(s, n + 1))
            n++;
        used += (size_t)snprintf(out + used, size - used, first == n ? "%s%u" : "%s%u-%u", used ? "," : "", first, n);
    }
}
