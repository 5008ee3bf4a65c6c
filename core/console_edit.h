/*
 * The line editor as a pure state machine: bytes in, screen bytes and an event out. No I/O, no allocation.
 */
#ifndef HV_CORE_CONSOLE_EDIT_H
#define HV_CORE_CONSOLE_EDIT_H

#include "include/hv/types.h"

#define EDIT_LINE_BYTES 2300   /* a kernel command line of 2047 characters fits into a `vm create` */
#define EDIT_HISTORY 32

enum edit_event { EDIT_NONE, EDIT_LINE /* edit->line is complete */, EDIT_COMPLETE /* Tab: the caller offers completions */,
    EDIT_CANCEL /* Ctrl-C: the line was dropped */ };

struct line_edit {
    char line[EDIT_LINE_BYTES];
    unsigned len, cursor;
    unsigned left;             /* first visible character */
    const char *prompt;
    unsigned columns;          /* of the terminal */
    char saved[EDIT_LINE_BYTES]; /* what was being typed when history was entered */
    char history[EDIT_HISTORY][256]; /* most recent first; longer lines are not kept */
    unsigned history_count;
    int history_pos;           /* -1: the line itself */
    uint8_t escape;            /* bytes of an escape sequence seen so far */
    uint8_t escape_param;
    uint8_t last;              /* previous byte: LF after CR is swallowed */
    void (*put)(const char *s, size_t len, void *arg);
    void *arg;
};

void edit_init(struct line_edit *e, const char *prompt, unsigned columns, void (*put)(const char *, size_t, void *), void *arg);
/* Starts an empty line: shows the prompt. */
void edit_begin(struct line_edit *e);
enum edit_event edit_input(struct line_edit *e, uint8_t byte);
/* Prompt, text and cursor again, from the start of a line of the screen. */
void edit_redraw(struct line_edit *e);
/* Inserts text at the cursor; what does not fit rings the bell. */
void edit_insert(struct line_edit *e, const char *s, size_t len);

#endif
