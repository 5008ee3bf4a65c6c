/*
 * The 8259A pair and its ELCR (Intel 8259A data sheet; ICH: 4D0h/4D1h). Everything runs under the platform's irq_lock.
 * IRR is a latch for edge inputs and follows the line for level ones; the pair's INTR is recomputed after every change.
 */
#include "vdev/platform.h"

#include "lib/string.h"

/* 0 is the highest of eight priorities; 8: nothing. */
static unsigned priority_of(const struct vpic_chip *c, uint8_t set)
{
    if (!set)
        return 8;
    unsigned p = 0;
    while (!(set >> ((p + c->lowest + 1) & 7) & 1))
        p++;
    return p;
}

/* The IRQ that this chip would present, or -1. */
static int chip_irq(const struct vpic_chip *c, bool cascade_master)
{
    unsigned request = priority_of(c, c->irr & ~c->imr & 0xff);
    uint8_t in_service = c->isr;
    if (c->special_mask)
        in_service &= ~c->imr;
    if (cascade_master && c->fully_nested)
        in_service &= ~(1u << 2); /* the slave's higher priorities come through */
    if (request == 8 || request >= priority_of(c, in_service))
        return -1;
    return (int)((request + c->lowest + 1) & 7);
}

static void chip_line(struct vpic_chip *c, unsigned irq, bool level)
{
    uint8_t bit = (uint8_t)(1u << irq);
    if (c->elcr & bit)
        c->irr = level ? c->irr | bit : c->irr & ~bit;
    else if (level && !(c->lines & bit))
        c->irr |= bit;
    else if (!level)
        c->irr &= ~bit; /* an edge request must stay until INTA, else it is spurious */
    c->lines = level ? c->lines | bit : c->lines & ~bit;
}

/* After any change: the slave drives the master's input 2, the master drives INTR. */
static void update(struct platform *p)
{
    struct vpic *c = &p->pic;
    int slave = chip_irq(&c->chip[1], false);
    chip_line(&c->chip[0], 2, false);
    if (slave >= 0)
        chip_line(&c->chip[0], 2, true);
    bool out = chip_irq(&c->chip[0], true) >= 0;
    __atomic_store_n(&c->output, out, __ATOMIC_SEQ_CST);
    if (out)
        vlapic_pic_raised(p);
}

void vpic_reset(struct vpic *c)
{
    memset(c, 0, sizeof *c);
    for (unsigned n = 0; n < 2; n++)
        c->chip[n] = (struct vpic_chip){.imr = 0xff, .lowest = 7, .elcr_mask = n ? 0xde : 0xf8, .base = n ? 0x70 : 0x08};
}

void vpic_set_line(struct platform *p, unsigned irq, bool level)
{
    struct vpic_chip *c = &p->pic.chip[irq >> 3 & 1];
    uint8_t before = c->irr;
    chip_line(c, irq & 7, level);
    if (c->irr != before)
        update(p);
}

int vpic_peek(const struct vpic *c)
{
    int irq = chip_irq(&c->chip[0], true);
    if (irq < 0)
        return -1;
    if (irq != 2)
        return c->chip[0].base + irq;
    int slave = chip_irq(&c->chip[1], false);
    return c->chip[1].base + (slave < 0 ? 7 : slave); /* 7: spurious */
}

static void chip_ack(struct vpic_chip *c, unsigned irq)
{
    uint8_t bit = (uint8_t)(1u << irq);
    if (!(c->elcr & bit))
        c->irr &= ~bit;
    if (!c->auto_eoi)
        c->isr |= bit;
    else if (c->rotate_auto)
        c->lowest = (uint8_t)irq;
}

/* INTA for the vector that vpic_peek() gave. If the request is gone meanwhile, the guest sees what it would call spurious. */
void vpic_accept(struct platform *p, uint8_t vector)
{
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    struct vpic *c = &p->pic;
    if (vpic_peek(c) == vector) {
        unsigned irq = (unsigned)chip_irq(&c->chip[0], true);
        chip_ack(&c->chip[0], irq);
        int slave = irq == 2 ? chip_irq(&c->chip[1], false) : -1;
        if (slave >= 0)
            chip_ack(&c->chip[1], (unsigned)slave);
        update(p);
    }
    spin_unlock_irqrestore(&p->irq_lock, flags);
}

static void write_ocw2(struct vpic_chip *c, uint8_t val)
{
    unsigned op = val >> 5, irq = val & 7;
    unsigned top = priority_of(c, c->special_mask ? c->isr & ~c->imr : c->isr);
    switch (op) {
    case 0: case 4: /* rotate in automatic EOI mode: clear, set */
        c->rotate_auto = op == 4;
        break;
    case 1: case 5: /* non-specific EOI, rotating or not */
        if (top == 8)
            break;
        irq = (top + c->lowest + 1) & 7;
        c->isr &= ~(1u << irq);
        if (op == 5)
            c->lowest = (uint8_t)irq;
        break;
    case 3: case 7: /* specific EOI */
        c->isr &= ~(1u << irq);
        if (op == 7)
            c->lowest = (uint8_t)irq;
        break;
    case 6: /* set priority */
        c->lowest = (uint8_t)irq;
        break;
    }
}

static void write_command(struct vpic_chip *c, uint8_t val)
{
    if (val & 0x10) { /* ICW1 */
        *c = (struct vpic_chip){.lines = c->lines, .elcr = c->elcr, .elcr_mask = c->elcr_mask, .base = c->base, .lowest = 7,
                                .irr = c->lines & c->elcr, .icw_step = 2, .icw4_needed = val & 1, .single = val & 2};
    } else if (val & 0x08) { /* OCW3 */
        c->poll = val & 4;
        if (val & 2)
            c->read_isr = val & 1;
        if (val & 0x40)
            c->special_mask = val & 0x20;
    } else {
        write_ocw2(c, val);
    }
}

static void write_data(struct vpic_chip *c, uint8_t val)
{
    switch (c->icw_step) {
    case 0: c->imr = val; break;
    case 2:
        c->base = val & 0xf8;
        c->icw_step = !c->single ? 3 : c->icw4_needed ? 4 : 0;
        break;
    case 3: c->icw_step = c->icw4_needed ? 4 : 0; break; /* the wiring is fixed */
    case 4:
        c->auto_eoi = val & 2;
        c->fully_nested = val & 0x10;
        c->icw_step = 0;
        break;
    }
}

static uint8_t read_command(struct vpic_chip *c, bool master)
{
    if (!c->poll)
        return c->read_isr ? c->isr : c->irr;
    c->poll = false;
    int irq = chip_irq(c, master);
    if (irq < 0)
        return 7;
    chip_ack(c, (unsigned)irq);
    return (uint8_t)(0x80 | irq);
}

static uint8_t pic_byte(void *dev, uint16_t port, bool in, uint8_t val)
{
    struct platform *p = dev;
    struct vpic_chip *c = &p->pic.chip[port == 0x4d1 || (port & ~1) == 0xa0];
    if (port != 0x4d0 && port != 0x4d1 && (port & ~1) != 0x20 && (port & ~1) != 0xa0)
        return 0xff;
    uint64_t flags = spin_lock_irqsave(&p->irq_lock);
    uint8_t result = 0;
    if (port >= 0x4d0) {
        if (!in)
            c->elcr = val & c->elcr_mask;
        result = c->elcr;
    } else if (port & 1) {
        if (!in)
            write_data(c, val);
        result = c->imr;
    } else if (in) {
        result = read_command(c, c == &p->pic.chip[0]);
    } else {
        write_command(c, val);
    }
    update(p);
    spin_unlock_irqrestore(&p->irq_lock, flags);
    return result;
}

void vpic_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    (void)v;
    pio_bytewise(dev, port, size, in, val, pic_byte);
}
