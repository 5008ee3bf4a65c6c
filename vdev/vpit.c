/*
 * 8254 timer with three counters, and port 61h (Intel 8254 data sheet).
 *
 * A counter is not a loop that counts: its value and OUT are functions of the time since the count was loaded. Only counter 0 needs a
 * host timer, and only while it will make an interrupt: a guest that has stopped it (mode 0, counted down) costs nothing. Its
 * interrupt is a low-high pulse of IRQ 0 at each rising edge of OUT.
 */
#include "vdev/platform.h"

#include "lib/string.h"

#define PIT_HZ 1193182u

static uint64_t elapsed(const struct vpit *d, const struct vpit_channel *c)
{
    return ns_to_ticks(platform_now_ns(d->platform) - c->start_ns, PIT_HZ);
}

static bool one_shot(const struct vpit_channel *c) { return c->mode == 0 || c->mode == 1 || c->mode == 4 || c->mode == 5; }

/* Is it counting at all? Gate low stops modes 0, 2, 3 and 4; modes 1 and 5 wait for a trigger. */
static bool counting(const struct vpit_channel *c)
{
    return c->loaded && (c->mode == 1 || c->mode == 5 ? c->armed : c->gate);
}

static uint16_t current(const struct vpit *d, const struct vpit_channel *c)
{
    uint64_t n = counting(c) ? elapsed(d, c) : 0, modulus = c->bcd ? 10000 : 0x10000;
    uint64_t left;
    if (!c->loaded)
        return 0;
    if (one_shot(c))
        left = (c->reload + modulus - n % modulus) % modulus; /* goes on through zero */
    else if (c->mode == 3) /* counts by two, twice per period */
        left = c->reload - (n * 2) % c->reload;
    else
        left = c->reload - n % c->reload;
    left %= modulus;
    if (!c->bcd)
        return (uint16_t)left;
    return (uint16_t)(left / 1000 << 12 | left / 100 % 10 << 8 | left / 10 % 10 << 4 | left % 10);
}

static bool output(const struct vpit *d, const struct vpit_channel *c)
{
    if (!c->loaded)
        return c->mode != 0;
    uint64_t n = elapsed(d, c);
    switch (c->mode) {
    case 0: return counting(c) && n >= c->reload;
    case 1: return !c->armed || n >= c->reload;
    case 2: return !c->gate || n % c->reload != c->reload - 1;
    case 3: return !c->gate || n % c->reload < (c->reload + 1) / 2;
    default: return !counting(c) || n != c->reload;
    }
}

/* Arms the host timer for counter 0's next rising edge. Under dev_lock. */
static void schedule(struct vpit *d)
{
    struct vpit_channel *c = &d->ch[0];
    if (!counting(c)) {
        vtimer_disarm(&d->timer);
        return;
    }
    vtimer_arm(&d->timer, c->start_ns + MAX(ticks_to_ns(c->reload, PIT_HZ), one_shot(c) ? 0 : (uint64_t)VTIMER_MIN_PERIOD_NS));
}

static void timer_fired(void *dev)
{
    struct vpit *d = dev;
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    struct vpit_channel *c = &d->ch[0];
    if (vtimer_expired(&d->timer)) {
        if (!one_shot(c)) {
            uint64_t period = MAX(ticks_to_ns(c->reload, PIT_HZ), (uint64_t)VTIMER_MIN_PERIOD_NS);
            vtimer_arm(&d->timer, vtimer_next_ns(d->timer.due_ns, period, platform_now_ns(d->platform)));
        }
        platform_set_isa_irq(d->platform, 0, false);
        platform_set_isa_irq(d->platform, 0, true);
    } else if (d->timer.active) {
        vtimer_arm(&d->timer, d->timer.due_ns);
    }
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

static void load(struct vpit *d, struct vpit_channel *c, uint16_t val)
{
    uint32_t n = val;
    if (c->bcd)
        n = MIN(val >> 12, 9) * 1000u + MIN(val >> 8 & 15, 9) * 100u + MIN(val >> 4 & 15, 9) * 10u + MIN(val & 15, 9);
    c->reload = n ? n : c->bcd ? 10000 : 0x10000;
    if (c->reload == 1 && !one_shot(c))
        c->reload = 2; /* 1 is not allowed in modes 2 and 3 */
    c->loaded = true;
    c->null_count = false;
    c->start_ns = platform_now_ns(d->platform);
    if (c == &d->ch[0])
        schedule(d);
}

static void latch(const struct vpit *d, struct vpit_channel *c)
{
    if (c->latched)
        return;
    c->count_latch = current(d, c);
    c->latched = true;
    c->latched_high = false;
}

static void write_control(struct vpit *d, uint8_t val)
{
    if (val >> 6 == 3) { /* read-back */
        for (unsigned n = 0; n < 3; n++) {
            struct vpit_channel *c = &d->ch[n];
            if (!(val >> (n + 1) & 1))
                continue;
            if (!(val & 0x20))
                latch(d, c);
            if (!(val & 0x10) && !c->status_latched) {
                c->status_latched = true;
                c->status_latch = (uint8_t)(output(d, c) << 7 | c->null_count << 6 | c->access << 4 | c->mode << 1 | c->bcd);
            }
        }
        return;
    }
    struct vpit_channel *c = &d->ch[val >> 6];
    unsigned mode = val >> 1 & 7;
    if (!(val >> 4 & 3)) {
        latch(d, c);
        return;
    }
    *c = (struct vpit_channel){.gate = c->gate, .access = val >> 4 & 3, .mode = (uint8_t)(mode > 5 ? mode - 4 : mode), .bcd = val & 1,
                               .null_count = true, .start_ns = platform_now_ns(d->platform)};
    if (c == &d->ch[0]) {
        schedule(d);
        platform_set_isa_irq(d->platform, 0, c->mode != 0);
    }
}

static void write_count(struct vpit *d, struct vpit_channel *c, uint8_t val)
{
    if (c->access == 1) {
        load(d, c, val);
    } else if (c->access == 2) {
        load(d, c, (uint16_t)(val << 8));
    } else if (!c->write_high) {
        c->low_byte = val;
        c->write_high = true;
        if (c->mode == 0) { /* the first byte stops the count */
            c->loaded = false;
            c->null_count = true;
            if (c == &d->ch[0])
                schedule(d);
        }
    } else {
        c->write_high = false;
        load(d, c, (uint16_t)(val << 8 | c->low_byte));
    }
}

static uint8_t read_count(const struct vpit *d, struct vpit_channel *c)
{
    if (c->status_latched) {
        c->status_latched = false;
        return c->status_latch;
    }
    uint16_t n = c->latched ? c->count_latch : current(d, c);
    if (c->access == 1 || c->access == 2) {
        c->latched = false;
        return (uint8_t)(c->access == 1 ? n : n >> 8);
    }
    bool *high = c->latched ? &c->latched_high : &c->read_high;
    bool second = *high;
    *high = !second;
    if (second)
        c->latched = false;
    return (uint8_t)(second ? n >> 8 : n);
}

static uint8_t pit_byte(void *dev, uint16_t port, bool in, uint8_t val)
{
    struct vpit *d = dev;
    unsigned n = port - 0x40u;
    uint8_t result = 0xff;
    if (n > 3)
        return 0xff;
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    if (n == 3 && !in)
        write_control(d, val);
    else if (n < 3 && in)
        result = read_count(d, &d->ch[n]);
    else if (n < 3)
        write_count(d, &d->ch[n], val);
    spin_unlock_irqrestore(&d->dev_lock, flags);
    return result;
}

void vpit_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    (void)v;
    pio_bytewise(dev, port, size, in, val, pit_byte);
}

/* Port 61h: bit 0 gate of counter 2, 1 speaker, 4 refresh toggle (15 us), 5 OUT of counter 2. */
static uint8_t port61_byte(void *dev, uint16_t port, bool in, uint8_t val)
{
    struct vpit *d = dev;
    if (port != 0x61)
        return 0xff;
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    struct vpit_channel *c = &d->ch[2];
    if (!in) {
        d->port61 = val & 0x0f;
        bool rising = (val & 1) && !c->gate;
        c->gate = val & 1;
        if (rising && c->loaded) { /* modes 1, 2, 3, 5: (re)starts; 0, 4: we count from here, which nobody can tell who only stops once */
            c->start_ns = platform_now_ns(d->platform);
            c->armed = c->mode == 1 || c->mode == 5;
        }
    }
    uint8_t result = (uint8_t)(d->port61 | (platform_now_ns(d->platform) / 15085 & 1) << 4 | output(d, c) << 5);
    spin_unlock_irqrestore(&d->dev_lock, flags);
    return result;
}

void vpit_port61_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    (void)v;
    pio_bytewise(dev, port, size, in, val, port61_byte);
}

void vpit_reset(struct vpit *d)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    for (unsigned n = 0; n < 3; n++)
        d->ch[n] = (struct vpit_channel){.gate = n != 2, .access = 3, .null_count = true, .reload = 0x10000};
    d->port61 = 0;
    vtimer_disarm(&d->timer);
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vpit_save(struct vpit *d, struct vpit_saved *out)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    memcpy(out->ch, d->ch, sizeof(out->ch));
    out->port61 = d->port61;
    vtimer_save(&d->timer, &out->timer);
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vpit_load(struct vpit *d, const struct vpit_saved *in)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    memcpy(d->ch, in->ch, sizeof(d->ch));
    d->port61 = in->port61;
    vtimer_load(&d->timer, &in->timer);
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vpit_init(struct vpit *d, struct platform *p)
{
    d->platform = p;
    spin_init(&d->dev_lock, LOCK_RANK_VDEV, "vpit");
    vtimer_init(&d->timer, p, timer_fired, d);
}
