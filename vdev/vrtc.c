/*
 * MC146818 clock at 70h/71h (Motorola MC146818 data sheet). The time is computed from the wall clock when it is read: no update
 * cycle exists, so UIP is always 0 and Linux never waits for it. Timers run only while the guest enables an interrupt.
 */
#include "vdev/platform.h"

#include "core/time.h"
#include "lib/string.h"

enum { RTC_SECONDS, RTC_ALARM_S, RTC_MINUTES, RTC_ALARM_M, RTC_HOURS, RTC_ALARM_H, RTC_DAY_OF_WEEK, RTC_DAY, RTC_MONTH, RTC_YEAR, RTC_A, RTC_B,
    RTC_C, RTC_D, RTC_CENTURY = 0x32 };
enum { B_24H = 0x02, B_BINARY = 0x04, B_UIE = 0x10, B_AIE = 0x20, B_PIE = 0x40, B_SET = 0x80, C_IRQF = 0x80 };

struct fields { uint32_t second, minute, hour, weekday /* 1 = Sunday */, day, month, year; };

/* Days since 1970 <-> civil date, counted from 1 March so that the leap day ends a year. */
static int64_t days_from_civil(int64_t y, uint32_t m, uint32_t d)
{
    y -= m <= 2;
    int64_t era = y / 400, in_era = y % 400;
    int64_t in_year = (153 * ((int64_t)m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + in_era * 365 + in_era / 4 - in_era / 100 + in_year - 719468;
}

static void fields_of(uint64_t unix_s, struct fields *f)
{
    uint64_t days = unix_s / 86400, s = unix_s % 86400;
    uint64_t z = days + 719468, era = z / 146097, doe = z % 146097;
    uint64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365, doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    uint64_t mp = (5 * doy + 2) / 153;
    f->second = (uint32_t)(s % 60), f->minute = (uint32_t)(s / 60 % 60), f->hour = (uint32_t)(s / 3600);
    f->weekday = (uint32_t)((days + 4) % 7 + 1);
    f->day = (uint32_t)(doy - (153 * mp + 2) / 5 + 1);
    f->month = (uint32_t)(mp < 10 ? mp + 3 : mp - 9);
    f->year = (uint32_t)(era * 400 + yoe + (f->month <= 2));
}

static uint8_t encode(const struct vrtc *d, uint32_t n)
{
    return (uint8_t)(d->cmos[RTC_B] & B_BINARY ? n : (n / 10 % 10) << 4 | n % 10);
}

static uint32_t decode(const struct vrtc *d, uint8_t raw)
{
    return d->cmos[RTC_B] & B_BINARY ? raw : (raw >> 4) * 10u + (raw & 15);
}

static uint64_t now_s(const struct vrtc *d)
{
    int64_t s = (int64_t)time_wallclock_s() + d->offset_s;
    return s < 0 ? 0 : (uint64_t)s;
}

/* The registers as they would stand now, into cmos[]. While SET is on they stand still. */
static void refresh(struct vrtc *d)
{
    struct fields f;
    if (d->cmos[RTC_B] & B_SET)
        return;
    fields_of(now_s(d), &f);
    d->cmos[RTC_SECONDS] = encode(d, f.second);
    d->cmos[RTC_MINUTES] = encode(d, f.minute);
    if (d->cmos[RTC_B] & B_24H)
        d->cmos[RTC_HOURS] = encode(d, f.hour);
    else
        d->cmos[RTC_HOURS] = encode(d, f.hour % 12 ? f.hour % 12 : 12) | (f.hour >= 12 ? 0x80 : 0);
    d->cmos[RTC_DAY_OF_WEEK] = encode(d, f.weekday);
    d->cmos[RTC_DAY] = encode(d, f.day);
    d->cmos[RTC_MONTH] = encode(d, f.month);
    d->cmos[RTC_YEAR] = encode(d, f.year % 100);
    d->cmos[RTC_CENTURY] = encode(d, f.year / 100);
}

static uint32_t decode_hour(const struct vrtc *d, uint8_t raw)
{
    if (d->cmos[RTC_B] & B_24H)
        return decode(d, raw);
    return decode(d, raw & 0x7f) % 12 + (raw & 0x80 ? 12 : 0);
}

/* The guest wrote time registers: what they say becomes the time. Nonsense is brought into range first. */
static void adopt(struct vrtc *d)
{
    uint32_t year = decode(d, d->cmos[RTC_CENTURY]) * 100 + decode(d, d->cmos[RTC_YEAR]) % 100;
    uint32_t month = decode(d, d->cmos[RTC_MONTH]), day = decode(d, d->cmos[RTC_DAY]);
    year = year < 1970 || year > 9999 ? 1970 : year;
    month = month < 1 ? 1 : MIN(month, 12);
    day = day < 1 ? 1 : MIN(day, 31);
    int64_t s = days_from_civil(year, month, day) * 86400 + decode_hour(d, d->cmos[RTC_HOURS]) % 24 * 3600 +
                decode(d, d->cmos[RTC_MINUTES]) % 60 * 60 + decode(d, d->cmos[RTC_SECONDS]) % 60;
    d->offset_s = s - (int64_t)time_wallclock_s();
}

/* ---- interrupts ----------------------------------------------------------------------------------------------------- */

static void update_irq(struct vrtc *d)
{
    bool on = d->cmos[RTC_C] & d->cmos[RTC_B] & (B_PIE | B_AIE | B_UIE);
    d->cmos[RTC_C] = (d->cmos[RTC_C] & ~C_IRQF) | (on ? C_IRQF : 0);
    platform_set_isa_irq(d->platform, 8, on);
}

static uint64_t period_ns(const struct vrtc *d)
{
    unsigned rate = d->cmos[RTC_A] & 15;
    if (rate == 0)
        return 0;
    return ticks_to_ns(1u << ((rate < 3 ? rate + 7 : rate) - 1), 32768);
}

static void schedule(struct vrtc *d)
{
    uint64_t now = platform_now_ns(d->platform), period = period_ns(d);
    if (!(d->cmos[RTC_B] & B_PIE) || !period)
        vtimer_disarm(&d->periodic);
    else if (!d->periodic.active)
        vtimer_arm(&d->periodic, now + period);
    if (!(d->cmos[RTC_B] & (B_AIE | B_UIE)) || (d->cmos[RTC_B] & B_SET))
        vtimer_disarm(&d->second);
    else if (!d->second.active)
        vtimer_arm(&d->second, now + 1000000000);
}

static bool alarm_matches(struct vrtc *d)
{
    refresh(d);
    for (unsigned n = RTC_ALARM_S; n <= RTC_ALARM_H; n += 2)
        if (d->cmos[n] < 0xc0 && d->cmos[n] != d->cmos[n - 1])
            return false;
    return true;
}

static void fired(struct vrtc *d, struct vtimer *t, uint64_t period)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    if (!vtimer_expired(t)) {
        if (t->active)
            vtimer_arm(t, t->due_ns);
    } else {
        if (t == &d->periodic)
            d->cmos[RTC_C] |= B_PIE;
        else
            d->cmos[RTC_C] |= B_UIE | (alarm_matches(d) ? B_AIE : 0);
        if (period)
            vtimer_arm(t, vtimer_next_ns(t->due_ns, period, platform_now_ns(d->platform)));
        update_irq(d);
    }
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

static void periodic_fired(void *dev) { struct vrtc *d = dev; fired(d, &d->periodic, period_ns(d)); }
static void second_fired(void *dev) { struct vrtc *d = dev; fired(d, &d->second, 1000000000); }

/* ---- ports ------------------------------------------------------------------------------------------------------------- */

static uint8_t read_data(struct vrtc *d)
{
    refresh(d);
    uint8_t result = d->cmos[d->index];
    if (d->index == RTC_C) {
        d->cmos[RTC_C] = 0;
        update_irq(d);
    }
    return result;
}

static void write_data(struct vrtc *d, uint8_t val)
{
    uint8_t reg = d->index;
    if (reg == RTC_C || reg == RTC_D)
        return;
    refresh(d); /* so that the fields not written keep their present value */
    if (reg == RTC_A) {
        d->cmos[RTC_A] = val & 0x7f;
        vtimer_disarm(&d->periodic);
    } else if (reg == RTC_B) {
        uint8_t old = d->cmos[RTC_B];
        if ((old & B_SET) && !(val & B_SET))
            adopt(d); /* in the format the fields were written in */
        d->cmos[RTC_B] = val & B_SET ? val & ~B_UIE : val;
        update_irq(d);
    } else {
        d->cmos[reg] = val;
        bool time = reg <= RTC_YEAR && reg != RTC_DAY_OF_WEEK && reg != RTC_ALARM_S && reg != RTC_ALARM_M && reg != RTC_ALARM_H;
        if ((time || reg == RTC_CENTURY) && !(d->cmos[RTC_B] & B_SET))
            adopt(d);
        return;
    }
    schedule(d);
}

static uint8_t rtc_byte(void *dev, uint16_t port, bool in, uint8_t val)
{
    struct vrtc *d = dev;
    uint8_t result = 0xff;
    if (port != 0x70 && port != 0x71)
        return 0xff;
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    if (port == 0x70 && !in)
        d->index = val & 0x7f; /* bit 7 masks NMI on a real board */
    else if (port == 0x71 && in)
        result = read_data(d);
    else if (port == 0x71)
        write_data(d, val);
    spin_unlock_irqrestore(&d->dev_lock, flags);
    return result;
}

void vrtc_pio(struct vcpu *v, void *dev, uint16_t port, unsigned size, bool in, uint32_t *val)
{
    (void)v;
    pio_bytewise(dev, port, size, in, val, rtc_byte);
}

/* Memory sizes where PC firmware leaves them: 15h/16h base KiB, 17h/18h and 30h/31h KiB above 1 MiB, 34h/35h 64 KiB above 16 MiB,
 * 5Bh-5Dh 64 KiB above 4 GiB. */
static void memory_size(struct vrtc *d)
{
    uint64_t bytes = d->platform->vm->config->memory_bytes, low = MIN(bytes, GIB(3)), high = bytes - low;
    uint64_t ext = low > MIB(1) ? MIN((low - MIB(1)) >> 10, 0xffffu) : 0, above16 = low > MIB(16) ? MIN((low - MIB(16)) >> 16, 0xffffu) : 0;
    const uint64_t values[][2] = {{0x15, 640}, {0x17, ext}, {0x30, ext}, {0x34, above16}, {0x5b, high >> 16}};
    for (unsigned n = 0; n < ARRAY_SIZE(values); n++) {
        d->cmos[values[n][0]] = (uint8_t)values[n][1];
        d->cmos[values[n][0] + 1] = (uint8_t)(values[n][1] >> 8);
    }
    d->cmos[0x5d] = (uint8_t)(high >> 32);
}

void vrtc_reset(struct vrtc *d)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    vtimer_disarm(&d->periodic);
    vtimer_disarm(&d->second);
    memset(d->cmos, 0, sizeof d->cmos); /* the time itself (offset_s) has a battery */
    d->cmos[RTC_A] = 0x26;
    d->cmos[RTC_B] = B_24H;
    d->cmos[RTC_D] = 0x80; /* the battery is good */
    d->index = 0;
    memory_size(d);
    platform_set_isa_irq(d->platform, 8, false);
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

/* The time is the wall clock's and goes on while a copy waits, as it would behind a battery. */
void vrtc_save(struct vrtc *d, struct vrtc_saved *out)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    out->index = d->index;
    out->offset_s = d->offset_s;
    memcpy(out->cmos, d->cmos, sizeof(out->cmos));
    vtimer_save(&d->periodic, &out->periodic);
    vtimer_save(&d->second, &out->second);
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vrtc_load(struct vrtc *d, const struct vrtc_saved *in)
{
    uint64_t flags = spin_lock_irqsave(&d->dev_lock);
    d->index = in->index;
    d->offset_s = in->offset_s;
    memcpy(d->cmos, in->cmos, sizeof(d->cmos));
    vtimer_load(&d->periodic, &in->periodic);
    vtimer_load(&d->second, &in->second);
    spin_unlock_irqrestore(&d->dev_lock, flags);
}

void vrtc_init(struct vrtc *d, struct platform *p)
{
    d->platform = p;
    spin_init(&d->dev_lock, LOCK_RANK_VDEV, "vrtc");
    vtimer_init(&d->periodic, p, periodic_fired, d);
    vtimer_init(&d->second, p, second_fired, d);
}
