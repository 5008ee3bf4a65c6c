/*
 * 16550A (National Semiconductor PC16550D data sheet).
 *
 * Output goes into a ring that the transmit interrupt empties, a FIFO's worth at a time. When the ring is full the writer
 * empties one FIFO's worth itself by polling: with interrupts off for ever, or in a flood, output becomes slow but not
 * lost. A port that stops taking bytes is waited for a bounded time once; then bytes are dropped and counted until it moves.
 *
 * The receive handler collects bytes under the lock and delivers them without it: the receiver takes locks that rank
 * below this one.
 */
#include "drivers/uart.h"
#include "core/lock.h"
#include "lib/string.h"
#include "x86/cpu.h"
#include "x86/idt.h"
#include "x86/tsc.h"

enum {
    UART_DATA = 0, UART_DLL = 0, UART_IER = 1, UART_DLM = 1, UART_IIR = 2, UART_FCR = 2, UART_LCR = 3, UART_MCR = 4,
    UART_LSR = 5, UART_MSR = 6, UART_SCR = 7,
};
#define IER_RX 0x01
#define IER_TX 0x02
#define IIR_NONE 0x01
#define FCR_ENABLE_CLEAR_TRIGGER8 0x87
#define LCR_8N1 0x03
#define LCR_DLAB 0x80
#define MCR_DTR_RTS_OUT2 0x0b /* OUT2 gates the interrupt line on a PC */
#define MCR_LOOP 0x10
#define LSR_DATA 0x01
#define LSR_THR_EMPTY 0x20
#define LSR_ALL_SENT 0x40

#define FIFO_BYTES 16
#define RING_BYTES 16384u /* power of two */
#define STALL_NS UINT64_C(200000000) /* a FIFO at 1200 baud takes 133 ms */
#define POLL_NS 1000

static struct spinlock lock = SPINLOCK_INIT(LOCK_RANK_UART, "uart");
static uint16_t port;             /* 0: none */
static unsigned isa_irq, current_baud;
static uint8_t ier;
static bool irq_driven, stalled;
static char ring[RING_BYTES];
static uint32_t head, tail;       /* free-running: bytes in, bytes out */
static void (*receiver)(uint8_t);

bool uart_present(void) { return port; }
unsigned uart_isa_irq(void) { return isa_irq; }

static void set_baud(uint16_t base, unsigned baud)
{
    unsigned divisor = 115200 / baud;
    out8(base + UART_LCR, LCR_DLAB | LCR_8N1);
    out8(base + UART_DLL, (uint8_t)divisor);
    out8(base + UART_DLM, (uint8_t)(divisor >> 8));
    out8(base + UART_LCR, LCR_8N1);
}

static void wait_all_sent(uint16_t base)
{
    for (uint64_t waited = 0; !(in8(base + UART_LSR) & LSR_ALL_SENT) && waited < STALL_NS; waited += POLL_NS)
        tsc_delay_ns(POLL_NS);
}

/* An absent port reads all ones or whatever floats; a real one gives back what its loop carries. */
static bool probe(uint16_t base)
{
    if (in8(base + UART_LSR) == 0xff)
        return false;
    wait_all_sent(base); /* clearing the FIFO would eat the loader's last words */
    out8(base + UART_IER, 0);
    set_baud(base, 115200);
    out8(base + UART_FCR, FCR_ENABLE_CLEAR_TRIGGER8);
    out8(base + UART_MCR, MCR_LOOP | MCR_DTR_RTS_OUT2);
    static const uint8_t patterns[] = {0xae, 0x51};
    for (unsigned i = 0; i < sizeof(patterns); i++) {
        out8(base + UART_DATA, patterns[i]);
        for (unsigned wait = 0; !(in8(base + UART_LSR) & LSR_DATA) && wait < 1000; wait++)
            tsc_delay_ns(POLL_NS);
        if (in8(base + UART_DATA) != patterns[i])
            return false;
    }
    out8(base + UART_MCR, MCR_DTR_RTS_OUT2);
    return true;
}

static bool thr_empty(void) { return in8(port + UART_LSR) & LSR_THR_EMPTY; }

static void set_ier(uint8_t value)
{
    if (value != ier) {
        ier = value;
        out8(port + UART_IER, value);
    }
}

/* Moves up to a FIFO's worth, if the transmitter is empty. */
static void fill_fifo(void)
{
    if (head == tail || !thr_empty())
        return;
    for (unsigned i = 0; i < FIFO_BYTES && tail != head; i++)
        out8(port + UART_DATA, (uint8_t)ring[tail++ % RING_BYTES]);
    stalled = false;
}

/* False: the transmitter did not become empty in time; the next call does not wait again. */
static bool wait_thr_empty(void)
{
    for (uint64_t waited = 0; !thr_empty(); waited += POLL_NS) {
        if (stalled || waited > STALL_NS) {
            stalled = true;
            return false;
        }
        tsc_delay_ns(POLL_NS);
    }
    stalled = false;
    return true;
}

static void drain_polled(void)
{
    while (head != tail && wait_thr_empty())
        fill_fifo();
}

bool uart_init(unsigned baud)
{
    static const struct { uint16_t port; uint8_t irq; } candidates[] = {{0x3f8, 4}, {0x2f8, 3}, {0x3e8, 4}, {0x2e8, 3}};
    uint64_t flags = spin_lock_irqsave(&lock);
    for (unsigned i = 0; !port && i < ARRAY_SIZE(candidates); i++)
        if (probe(candidates[i].port)) {
            port = candidates[i].port;
            isa_irq = candidates[i].irq;
            current_baud = 115200;
        }
    if (port && baud && baud <= 115200 && 115200 % baud == 0 && baud != current_baud) {
        current_baud = baud;
        drain_polled();
        wait_all_sent(port);
        set_baud(port, baud);
    }
    spin_unlock_irqrestore(&lock, flags);
    return port;
}

void uart_write(const char *s, size_t len)
{
    if (!port)
        return;
    uint64_t flags = spin_lock_irqsave(&lock);
    for (size_t i = 0; i < len; i++) {
        if (head - tail == RING_BYTES) {
            if (!wait_thr_empty())
                break; /* the rest is lost */
            fill_fifo();
        }
        ring[head++ % RING_BYTES] = s[i];
    }
    if (irq_driven) {
        fill_fifo();
        set_ier(head != tail ? IER_RX | IER_TX : IER_RX);
    } else {
        drain_polled();
    }
    spin_unlock_irqrestore(&lock, flags);
}

void uart_write_polled(const char *s, size_t len)
{
    if (!port)
        return;
    drain_polled();
    for (size_t i = 0; i < len; i++) {
        if (s[i] == '\n' && wait_thr_empty())
            out8(port + UART_DATA, '\r');
        if (wait_thr_empty())
            out8(port + UART_DATA, (uint8_t)s[i]);
    }
}

/* What the FIFO holds, at most `size` bytes. */
static unsigned receive(uint8_t *buf, unsigned size)
{
    unsigned n = 0;
    for (uint8_t lsr; n < size && ((lsr = in8(port + UART_LSR)) & LSR_DATA);) {
        if (lsr == 0xff)
            break; /* the port went away */
        buf[n++] = in8(port + UART_DATA);
    }
    return n;
}

static void interrupt(void *arg UNUSED)
{
    uint8_t buf[64];
    /* The line is edge-triggered: leave only when the port has nothing more to say. Bounded, should it never be quiet. */
    for (unsigned rounds = 0; rounds < 32; rounds++) {
        uint64_t flags = spin_lock_irqsave(&lock);
        uint8_t iir = in8(port + UART_IIR);
        unsigned n = receive(buf, sizeof(buf));
        fill_fifo();
        set_ier(head != tail ? IER_RX | IER_TX : IER_RX);
        if ((iir & 0xf) == 0)
            (void)in8(port + UART_MSR); /* a modem line changed: reading clears it */
        spin_unlock_irqrestore(&lock, flags);
        for (unsigned i = 0; i < n; i++)
            receiver(buf[i]);
        if (!n && (iir & IIR_NONE))
            return;
    }
}

bool uart_enable_irq(uint8_t vector, void (*rx)(uint8_t byte))
{
    if (!port)
        return false;
    receiver = rx;
    if (!irq_register(vector, interrupt, NULL))
        return false;
    uint64_t flags = spin_lock_irqsave(&lock);
    irq_driven = true;
    out8(port + UART_MCR, MCR_DTR_RTS_OUT2);
    set_ier(IER_RX);
    spin_unlock_irqrestore(&lock, flags);
    return true;
}
