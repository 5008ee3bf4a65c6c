/*
 * Quoting only ever shortens a word, so words are rewritten in place behind the reader: no buffer, no length to overflow.
 */
#include "core/console_parse.h"

enum console_parse_result console_parse(char *line, char **argv, int max, int *argc, bool *json)
{
    char *in = line, *out = line;
    *argc = 0;
    *json = false;
    for (;;) {
        bool quotes = false, quoted = false;
        while (*in == ' ' || *in == '\t')
            in++;
        if (!*in || *in == '#')
            return *argc ? CONSOLE_PARSE_OK : CONSOLE_PARSE_EMPTY;
        char *word = out;
        for (; *in && (quotes || (*in != ' ' && *in != '\t')); in++) {
            if (*in == '"') {
                quotes = !quotes;
                quoted = true;
                continue;
            }
            if (*in == '\\' && in[1]) {
                in++;
                quoted = true;
            }
            *out++ = *in;
        }
        if (quotes)
            return CONSOLE_PARSE_QUOTE;
        bool last = !*in;
        in += !last;
        *out++ = 0;
        if (!quoted && word[0] == '-' && word[1] == 'j' && !word[2]) {
            *json = true;
            out = word;
        } else if (*argc == max) {
            return CONSOLE_PARSE_TOO_MANY;
        } else {
            argv[(*argc)++] = word;
        }
        if (last)
            return *argc ? CONSOLE_PARSE_OK : CONSOLE_PARSE_EMPTY;
    }
}
