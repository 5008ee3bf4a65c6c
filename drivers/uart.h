/* The serial console: one 16550 at COM1 (or the first of COM1..COM4 that answers). */
#ifndef HV_DRIVERS_UART_H
#define HV_DRIVERS_UART_H

#include "include/hv/types.h"

/* Finds and programs the port, 8N1; polled until uart_enable_irq(). False: no port answers, and everything below does
 * nothing. May be called again to change the rate (0 or not a divisor of 115200: kept). */
bool uart_init(unsigned baud);
bool uart_present(void);
/* The ISA interrupt line of the port, for the I/O APIC. */
unsigned uart_isa_irq(void);
/* From here on output leaves by interrupts, and each received byte goes to rx(byte), in interrupt context, no lock held.
 * `vector` must be routed to the port's line. */
bool uart_enable_irq(uint8_t vector, void (*rx)(uint8_t byte));
/* Any context. Bytes go out in order, none is lost while the port works; returns once they are in the ring. "\n" is sent
 * as it is. */
void uart_write(const char *s, size_t len);
/* Takes no lock and leaves nothing in the ring: panic and halts. "\n" becomes "\r\n". */
void uart_write_polled(const char *s, size_t len);

#endif
