/* A command line into words: pure. */
#ifndef HV_CORE_CONSOLE_PARSE_H
#define HV_CORE_CONSOLE_PARSE_H
#include "include/hv/types.h"
enum console_parse_result { CONSOLE_PARSE_OK, CONSOLE_PARSE_EMPTY, CONSOLE_PARSE_QUOTE /* unclosed */, CONSOLE_PARSE_TOO_MANY };
/*
 * Splits `line` in place at blanks. "..." keeps blanks together, also inside a word (cmdline="a b"); inside quotes, and outside,
 * a backslash takes the next character as it is. A word that is exactly -j and not quoted is taken out and sets *json.
 * A # outside quotes at the start of a word begins a comment. At most max words.
 */
enum console_parse_result console_parse(char *line, char **argv, int max, int *argc, bool *json);
#endif
