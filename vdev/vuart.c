/*
 * 16550A at COM1 (National PC16550D data sheet). The transmitter is infinitely fast: a byte written is in the console ring at once, and
 * THRE is always set; the THRE *interrupt* is an event that a write or enabling it makes and reading IIR takes away. When
 * nobody reads the ring its oldest bytes are dropped and counted: what a user wants to see on attach is the end. The ring is made when the guest
 * first prints: most of what a fork that computes in silence would cost.
 */
#include "vdev/platform.h"

#include "lib/string.h"
#include "mm/mm.h"

enum { IER_RX = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8, LCR_DLAB = 0x80, MCR_OUT2 = 8, MCR_LOOP = 0x10, FCR_ENABLE = 1, FCR_CLEAR_RX = 2,
    LSR_DATA = 1, LSR_OVERRUN = 2, LSR_THRE = 0x20, LSR_TEMT = 0x40 };

#define FIFO_BYTES 16u /* of a 16550; our queue stands for the line behind it too */

static uint32_t input_used(const struct vuart *d) { return d->input_head - d->input_tail; }

static uint8_t msr_lines(const struct vuart *d)
{
    if (!(d->mcr & MCR_LOOP))
        return 0xb0; /* CTS, DSR, DCD: a terminal is there */
    return (uint8_t)((d->mcr & 1) << 5 | (d->mcr & 2) << 3 | (d->mcr & 4) << 4 | (d->mcr & 8) << 4);
}

/* IIR's identification, highest priority first (table 4 of the data sheet); 1: none. */
static uint8_t source(const struct vuart *d)
{
    if ((d->ier & IER_LINE) && d->lsr_errors)
        return 6;
    if ((d->ier & IER_RX) && input_used(d))
        return 4;
    if ((d->ier & IER_THRE) && d->thre_pending)
        return 2;
    if ((d->ier & IER_MODEM) && d->msr_delta)
        return 0;
    return 1;
}

static void update_irq(struct vuart *d)
{
    bool line = source(d) != 1 && (d->mcr & MCR_OUT2) && !(d->mcr & MCR_LOOP);
    if (line != d->line)
        platform_set_isa_irq(d->platform, 4, line);
    d->line = line;
}

static bool input_put(struct vuart *d, uint8_t byte)
{
    if (input_used(d) == VUART_INPUT_BYTES)
        return false;
    d->input[d->input_head++ % VUART_INPUT_BYTES] = byte;
    return true;
}

static void transmit(struct vuart *d, uint8_t byte)
{
    if (d->mcr & MCR_LOOP) {
        if (!input_put(d, byte))
            d->lsr_errors |= LSR_OVERRUN;
        return;
    }
    if (!d->ring) {
        d->dropped++;
        return;
    }
    bool was_empty = d->ring_head == d->ring_tail;
    if (d->ring_head - d->ring_tail == VUART_RING_BYTES) {
        d->ring_tail++;
        d->dropped++;
    }
    d->ring[d->ring_head++ % VUART_RING_BYTES] = (char)byte;
    if (was_empty)
        waitq_wake_all(&d->output_wait);
    if (was_empty && d->watcher)
        waitq_wake_all(d->watcher);
}

/* Who could not offer all it had is told when half of the queue is free again. */
static uint8_t input_take(struct vuart *d)
{
    if (!input_used(d))
        return 0;
    uint8_t byte = d->input[d->input_tail++ % VUART_INPUT_BYTES];
    if (d->input_refused && input_used(d) <= VUART_INPUT_BYTES / 2) {
        d->input_refused = false;
        if (d->watcher)
            waitq_wake_all(d->watcher);
    }
    return byte;
}

static uint8_t read_reg(struct vuart *d, unsigned reg)
{
    uint8_t result;
    switch (reg) {
    case 0:
        if (d->lcr & LCR_DLAB)
            return d->dll;
        return input_take(d);
    case 1: return d->lcr & LCR_DLAB ? d->dlm : d->ier;
    case 2:
        result = source(d);
        if (result == 2)
            d->thre_pending = false;
        return result | (d->fcr & FCR_ENABLE ? 0xc0 : 0);
    case 3: return d->lcr;
    case 4: return d->mcr;
    case 5:
        result = d->lsr_errors | LSR_THRE | LSR_TEMT | (input_used(d) ? LSR_DATA : 0);
        d->lsr_errors = 0;
        return result;
    case 6:
        result = msr_lines(d) | d->msr_delta;
        d->msr_delta = 0;
        return result;
    default: return d->scr;
    }
}

static void write_mcr(struct vuart *d, uint8_t val)
{
    uint8_t old = msr_lines(d);
    d->mcr = val & 0x1f;
    uint8_t changed = old ^ msr_lines(d);
    /* RI has only a trailing-edge bit */
    d->msr_delta |= (changed >> 4 & 0x0b) | ((changed & old & 0x40) >> 4);
}

static void write_reg(struct vuart *d, unsigned reg, uint8_t val)
{
    switch (reg) {
    case 0:
        if (d->lcr & LCR_DLAB) {
            d->dll = val;
        } else {
            d->thre_pending = false; /* the line falls and rises: an edge for each byte */
            update_irq(d);
            transmit(d, val);
            d->thre_pending = true;
        }
        break;
    case 1:
        if (d->lcr & LCR_DLAB) {
            d->dlm = val;
        } else {
            if ((val & IER_THRE) && !(d->ier & IER_THRE))
                d->thre_pending = true;
            d->ier = val & 0x0f;
        }
        break;
    case 2:
        if (((val ^ d->fcr) & FCR_ENABLE) || ((val & FCR_ENABLE) && (val & FCR_CLEAR_RX)))
            d->input_tail += MIN(input_used(d), FIFO_BYTES); /* the rest is still on the line */
        d->fcr = val & 0xc9;
        break;
    case 3: d->lcr = val; break;
    case 4: write_mcr(d, val); break;
    case 7: d->scr = val; break;
    }
}

static uint8_t uart_byte(void *dev, uint16_t port, bool in, uint8_t val)
{
    struct vuart *d = dev;
    uint8_t result = 0xff;
    if (port < 0x3f8 || port > 0x3ff)
        return 0xff;
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    if (in)
        result = read_reg(d, port - 0x3f8u);
    else
        write_reg(d, port - 0x3f8u, val);
    update_irq(d);
    spin_unlock_irqrestore(&d->dev_lock, flags);
    return result;
}

void vuart_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    struct vuart *d = dev;
    if (unlikely(!d->ring) && !in && port == 0x3f8)
        vm_alloc_late(v->vm, (void **)&d->ring, VUART_RING_BYTES); /* out of memory: what is printed now is lost, and counted */
    pio_bytewise(dev, port, size, in, val, uart_byte);
}

void vuart_reset(struct vuart *d)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->ier = d->lcr = d->mcr = d->msr_delta = d->scr = d->dlm = d->fcr = d->lsr_errors = 0;
    d->dll = 1;
    d->thre_pending = false;
    d->input_refused = false;
    d->input_tail = d->input_head; /* the output ring stays: it holds the last words before the reset */
    update_irq(d);
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vuart_save(struct vuart *d, struct vuart_saved *out)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    *out = (struct vuart_saved){.ier = d->ier, .lcr = d->lcr, .mcr = d->mcr, .msr_delta = d->msr_delta, .scr = d->scr, .dll = d->dll,
                                .dlm = d->dlm, .fcr = d->fcr, .lsr_errors = d->lsr_errors, .thre_pending = d->thre_pending, .line = d->line};
    for (uint32_t at = d->input_tail; at != d->input_head; at++)
        out->input[out->input_count++] = d->input[at % VUART_INPUT_BYTES];
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

/* The line's level has been loaded with the interrupt controllers. */
void vuart_load(struct vuart *d, const struct vuart_saved *in)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->ier = in->ier, d->lcr = in->lcr, d->mcr = in->mcr, d->msr_delta = in->msr_delta, d->scr = in->scr;
    d->dll = in->dll, d->dlm = in->dlm, d->fcr = in->fcr, d->lsr_errors = in->lsr_errors;
    d->thre_pending = in->thre_pending, d->line = in->line;
    d->input_tail = d->input_head;
    for (uint32_t n = 0; n < in->input_count; n++)
        input_put(d, in->input[n]);
    d->input_refused = false; /* whoever watches comes by after a command like this one */
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vuart_init(struct vuart *d, struct platform *p)
{
    d->platform = p;
    spin_init(&d->dev_lock, LOCK_RANK_VDEV, "vuart");
    waitq_init(&d->output_wait);
}

void vuart_fini(struct vuart *d)
{
    kfree(d->ring);
    d->ring = NULL;
}

/* ---- struct vuart_console --------------------------------------------------------------------------------------------- */

static struct vuart *uart_of(struct vm *vm) { return &((struct platform *)vm->platform)->uart; }

static size_t console_read(struct vm *vm, char *buf, size_t size)
{
    struct vuart *d = uart_of(vm);
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    size_t n = MIN(size, (size_t)(d->ring_head - d->ring_tail));
    for (size_t k = 0; k < n; k++)
        buf[k] = d->ring[d->ring_tail++ % VUART_RING_BYTES];
    spin_unlock_irqrestore(&d->dev_lock, flags);
    return n;
}

static size_t console_write(struct vm *vm, const char *buf, size_t len)
{
    struct vuart *d = uart_of(vm);
    size_t n = 0;
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    if (d->mcr & MCR_LOOP)
        n = len; /* the line is cut: what comes in is lost, as on the real one */
    while (n < len && input_put(d, (uint8_t)buf[n]))
        n++;
    d->input_refused |= n < len;
    update_irq(d);
    spin_unlock_irqrestore(&d->dev_lock, flags);
    return n;
}

static struct waitq *console_waitq(struct vm *vm) { return &uart_of(vm)->output_wait; }

static bool console_pending(struct vm *vm)
{
    const struct vuart *d = uart_of(vm);
    return __atomic_load_n(&d->ring_head, __ATOMIC_SEQ_CST) != __atomic_load_n(&d->ring_tail, __ATOMIC_SEQ_CST);
}

static uint64_t console_dropped(struct vm *vm) { return __atomic_load_n(&uart_of(vm)->dropped, __ATOMIC_RELAXED); }

static bool console_input_ready(struct vm *vm) { return !__atomic_load_n(&uart_of(vm)->input_refused, __ATOMIC_SEQ_CST); }

static void console_watch(struct vm *vm, struct waitq *q)
{
    struct vuart *d = uart_of(vm);
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->watcher = q;
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

const struct vuart_console vuart_console = {
    .read_output = console_read, .write_input = console_write, .output_waitq = console_waitq,
    .output_pending = console_pending, .output_dropped = console_dropped, .watch = console_watch, .input_ready = console_input_ready,
};
