/* samples.c - durations, kept at 0.1 us, and their percentiles as JSON. */
#include "samples.h"

#include <stdio.h>
#include <stdlib.h>

#define FIRST_CAPACITY 65536u
#define MAX_CAPACITY (16u << 20)

void add_sample(Samples *samples, uint64_t ns) {
    uint64_t ticks = ns / 100;
    if (samples->count == samples->capacity) {
        if (samples->capacity >= MAX_CAPACITY)
            return;
        size_t capacity = samples->capacity ? samples->capacity * 2 : FIRST_CAPACITY;
        uint32_t *grown = realloc(samples->values, capacity * sizeof *grown);
        if (!grown)
            return;
        samples->values = grown;
        samples->capacity = capacity;
    }
    samples->values[samples->count++] = ticks > UINT32_MAX ? UINT32_MAX : (uint32_t)ticks;
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double quantile_us(const Samples *samples, double q) {
    return samples->values[(size_t)((double)(samples->count - 1) * q)] / 10.0;
}

void print_samples(const char *name, Samples *samples) {
    double sum = 0;
    if (!samples->count) {
        printf(",\"%s\":null", name);
        return;
    }
    qsort(samples->values, samples->count, sizeof *samples->values, compare);
    for (size_t i = 0; i < samples->count; i++)
        sum += samples->values[i];
    printf(",\"%s\":{\"n\":%zu,\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name,
           samples->count, sum / (double)samples->count / 10.0, quantile_us(samples, .5), quantile_us(samples, .9),
           quantile_us(samples, .99), quantile_us(samples, 1));
}
