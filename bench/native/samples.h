/* samples.h - durations, kept at 0.1 us, and their percentiles as JSON. */
#ifndef SAMPLES_H
#define SAMPLES_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint32_t *values;
    size_t count, capacity;
} Samples;

/* Adds a duration; above 16 million samples further ones are left out. */
void add_sample(Samples *samples, uint64_t ns);
/* Prints ,"name":{"n":..,"mean":..,"p50":..,...} in microseconds, or ,"name":null without samples. */
void print_samples(const char *name, Samples *samples);
#endif
