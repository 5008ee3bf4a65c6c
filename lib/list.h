/* Intrusive circular doubly linked list. A head is a node; an empty list points at itself. */
#ifndef HV_LIB_LIST_H
#define HV_LIB_LIST_H
#include "include/hv/types.h"
struct list_head { struct list_head *next, *prev; };
#define LIST_INIT(h) { &(h), &(h) }
static inline void list_init(struct list_head *h) { h->next = h->prev = h; }
static inline bool list_empty(const struct list_head *h) { return h->next == h; }
static inline void list_insert(struct list_head *n, struct list_head *prev, struct list_head *next)
{
    n->prev = prev;
    n->next = next;
    prev->next = n;
    next->prev = n;
}
static inline void list_add(struct list_head *h, struct list_head *n) { list_insert(n, h, h->next); }
static inline void list_add_tail(struct list_head *h, struct list_head *n) { list_insert(n, h->prev, h); }
static inline void list_del(struct list_head *n)
{
    n->prev->next = n->next;
    n->next->prev = n->prev;
    n->next = n->prev = n; /* deleting twice is harmless, and list_empty(n) says "on no list" */
}
#define list_entry(p, type, member) container_of(p, type, member)
#define list_first(h, type, member) list_entry((h)->next, type, member)
#define list_for_each(it, h, type, member)                                                                 \
    for (type *it = list_first(h, type, member); &it->member != (h); it = list_entry(it->member.next, type, member))
#define list_for_each_safe(it, tmp, h, type, member)                                                       \
    for (type *it = list_first(h, type, member), *tmp = list_entry(it->member.next, type, member);         \
         &it->member != (h); it = tmp, tmp = list_entry(tmp->member.next, type, member))
#endif
