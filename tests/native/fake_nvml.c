/* A libnvidia-ml.so.1 with cards that are acted out. pynvml finds it by LD_LIBRARY_PATH.
 *
 * FAKE_NVML_DIR names a folder with two files. `state` is mapped by every process, so that all see the same cards: limits,
 * locked clocks, counters. `script` is what the test wants, read again whenever it changes; a line each:
 *
 *   gpus N                         how many cards there are (default 1)
 *   driver gone                    nvmlInit fails, and whatever was initialised
 *   driver epoch N                 the driver was loaded for the Nth time: limits and counters begin again
 *   card I lost                    every call on it: GPU is lost; a process that saw that must initialise again
 *   card I draw_watts X            what it would draw without a limit (default 300)
 *   card I host_limit_watts X      enforced besides the limit that was asked for
 *   card I settle_ms X             a new limit is in force after so long, on a straight line (default 0)
 *   card I step_watts X            the driver rounds limits down to multiples of it
 *   card I fail WHAT CODE          that call returns NVML's error CODE
 *   card I hang WHAT               that call does not come back while the line stands
 *   card I latency_us WHAT X       that call sleeps so long
 *
 * WHAT: energy power field limit enforced default range set_limit clock temperature reasons persistence lock_clocks
 * find. The counter moves every 100 ms by what was drawn: the smaller of draw and enforced limit.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CARDS 8
#define WHATS 14
#define DEFAULT_MW 700000
#define LOWEST_MW 200000
#define TICK_MS 100
#define FIRST_UJ 123456789000LL

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_FOUND = 6, NOT_LOADED = 9, NOT_SUPPORTED = 3, LOST = 15 };
enum what { ENERGY, POWER, FIELD, LIMIT, ENFORCED, DEFAULT, RANGE, SET_LIMIT, CLOCK, TEMPERATURE, REASONS, PERSISTENCE,
            LOCK_CLOCKS, FIND };
static const char *const names[WHATS] = { "energy", "power", "field", "limit", "enforced", "default", "range", "set_limit",
    "clock", "temperature", "reasons", "persistence", "lock_clocks", "find" };

/* As tests/native/nvml.py reads it: whole numbers of 64 bits. */
struct card {
    int64_t limit_mw, previous_mw, limit_set_ms, energy_uj, energy_at_ms, lock_low, lock_high, sets, touched, epoch;
};
struct wish {
    int lost, settle_ms, persistence, fail[WHATS], hang[WHATS], latency_us[WHATS];
    int64_t draw_mw, host_limit_mw, step_mw;
};
static struct {
    int gpus, gone, epoch;
    struct wish card[CARDS];
} script;

static struct card *cards;
static int lock_fd = -1, initialised, initialised_epoch, seen_lost[CARDS];
static struct timespec script_at;
static ino_t script_ino;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* flock does not keep threads apart */
static int handles[CARDS];

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void path_of(const char *file, char *path, size_t size)
{
    const char *folder = getenv("FAKE_NVML_DIR");
    snprintf(path, size, "%s/%s", folder ? folder : ".", file);
}

static void read_line(char *line)
{
    int card, code;
    char word[32], what[32];
    double value;

    if (sscanf(line, "gpus %d", &script.gpus) == 1)
        return;
    if (sscanf(line, "driver epoch %d", &script.epoch) == 1)
        return;
    if (!strncmp(line, "driver gone", 11)) {
        script.gone = 1;
        return;
    }
    if (sscanf(line, "card %d %31s", &card, word) != 2 || card < 0 || card >= CARDS)
        return;
    struct wish *wish = &script.card[card];
    if (!strcmp(word, "lost"))
        wish->lost = 1;
    else if (sscanf(line, "card %*d %*s %31s %d", what, &code) >= 1 && (!strcmp(word, "fail") || !strcmp(word, "hang")
            || !strcmp(word, "latency_us"))) {
        for (int i = 0; i < WHATS; i++)
            if (!strcmp(names[i], what)) {
                int *list = word[0] == 'f' ? wish->fail : word[0] == 'h' ? wish->hang : wish->latency_us;
                list[i] = word[0] == 'h' ? 1 : code;
            }
    } else if (sscanf(line, "card %*d %*s %lf", &value) == 1) {
        if (!strcmp(word, "draw_watts"))
            wish->draw_mw = value * 1000;
        else if (!strcmp(word, "host_limit_watts"))
            wish->host_limit_mw = value * 1000;
        else if (!strcmp(word, "step_watts"))
            wish->step_mw = value * 1000;
        else if (!strcmp(word, "settle_ms"))
            wish->settle_ms = value;
        else if (!strcmp(word, "persistence"))
            wish->persistence = value;
    }
}

static void read_script(void)
{
    char path[4096], line[256];
    struct stat info;

    path_of("script", path, sizeof path);
    int there = !stat(path, &info);
    if (there && info.st_ino == script_ino && info.st_mtim.tv_sec == script_at.tv_sec
        && info.st_mtim.tv_nsec == script_at.tv_nsec)
        return;
    memset(&script, 0, sizeof script);
    script.gpus = script.epoch = 1;
    for (int i = 0; i < CARDS; i++) {
        script.card[i].draw_mw = 300000;
        script.card[i].persistence = 1;
    }
    if (!there)
        return;
    script_ino = info.st_ino;
    script_at = info.st_mtim;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return;
    while (fgets(line, sizeof line, file))
        read_line(line);
    fclose(file);
}

static int map_state(void)
{
    char path[4096];

    if (cards != NULL)
        return 1;
    path_of("state", path, sizeof path);
    lock_fd = open(path, O_RDWR | O_CLOEXEC);
    if (lock_fd < 0 || ftruncate(lock_fd, CARDS * sizeof *cards))
        return 0;
    void *mapped = mmap(NULL, CARDS * sizeof *cards, PROT_READ | PROT_WRITE, MAP_SHARED, lock_fd, 0);
    if (mapped == MAP_FAILED)
        return 0;
    cards = mapped;
    return 1;
}

static int64_t enforced_mw(const struct card *card, const struct wish *wish, int64_t at_ms)
{
    int64_t limit = card->limit_mw, since = at_ms - card->limit_set_ms;
    if (wish->settle_ms > 0 && since < wish->settle_ms)
        limit = card->previous_mw + (card->limit_mw - card->previous_mw) * (since < 0 ? 0 : since) / wish->settle_ms;
    return wish->host_limit_mw && wish->host_limit_mw < limit ? wish->host_limit_mw : limit;
}

static int64_t drawn_mw(const struct card *card, const struct wish *wish, int64_t at_ms)
{
    int64_t limit = enforced_mw(card, wish, at_ms);
    return wish->draw_mw < limit ? wish->draw_mw : limit;
}

/* The state up to now. Called with the lock held. */
static void bring_up(struct card *card, const struct wish *wish)
{
    int64_t now = now_ms();
    if (card->epoch != script.epoch) {
        int64_t touched = card->touched, sets = card->sets;
        memset(card, 0, sizeof *card);
        *card = (struct card){ .limit_mw = DEFAULT_MW, .previous_mw = DEFAULT_MW, .energy_at_ms = now, .touched = touched,
            .sets = sets, .epoch = script.epoch, .energy_uj = script.epoch == 1 ? FIRST_UJ : 0 };
    }
    for (; card->energy_at_ms + TICK_MS <= now; card->energy_at_ms += TICK_MS)
        card->energy_uj += drawn_mw(card, wish, card->energy_at_ms) * TICK_MS;
}

static void leave(void)
{
    flock(lock_fd, LOCK_UN);
    pthread_mutex_unlock(&mutex);
}

/* Let others go on for so long. */
static void pause_us(long us)
{
    struct timespec nap = { 0, us * 1000 };
    pthread_mutex_unlock(&mutex);
    nanosleep(&nap, NULL);
    pthread_mutex_lock(&mutex);
    read_script();
}

static int judge(long card, enum what what)
{
    read_script();
    if (card < 0 || card >= CARDS)
        return INVALID;
    while (script.card[card].hang[what])
        pause_us(5000);
    if (script.card[card].latency_us[what])
        pause_us(script.card[card].latency_us[what]);
    if (!initialised || script.gone || initialised_epoch != script.epoch)
        return UNINITIALIZED;
    seen_lost[card] |= script.card[card].lost;
    return seen_lost[card] ? LOST : script.card[card].fail[what];
}

/* Begin a call on a card: 0 with the locks held, or an error. */
static int enter(void *handle, enum what what)
{
    long card = (int *)handle - handles;

    pthread_mutex_lock(&mutex);
    int code = judge(card, what);
    if (code) {
        pthread_mutex_unlock(&mutex);
        return code;
    }
    flock(lock_fd, LOCK_EX);
    bring_up(&cards[card], &script.card[card]);
    cards[card].touched++;
    return OK;
}

#define BEGIN(handle, what) \
    int begun = enter(handle, what); \
    if (begun) return begun; \
    struct card *card = &cards[(int *)(handle) - handles]; \
    const struct wish *wish = &script.card[(int *)(handle) - handles]; \
    (void)card; (void)wish
#define END do { leave(); return OK; } while (0)

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&mutex);
    read_script();
    int code = script.gone ? NOT_LOADED : map_state() ? OK : 17;
    if (code == OK) {
        initialised = 1;
        initialised_epoch = script.epoch;
        memset(seen_lost, 0, sizeof seen_lost);
    }
    pthread_mutex_unlock(&mutex);
    return code;
}

int nvmlShutdown(void)
{
    int was = initialised;
    initialised = 0;
    return was ? OK : UNINITIALIZED;
}

const char *nvmlErrorString(int code)
{
    static __thread char text[32];
    snprintf(text, sizeof text, "fake error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    pthread_mutex_lock(&mutex);
    read_script();
    *count = script.gpus;
    pthread_mutex_unlock(&mutex);
    return initialised && !script.gone ? OK : UNINITIALIZED;
}

static int handle_at(int index, void **device)
{
    pthread_mutex_lock(&mutex);
    int code = index < 0 || index >= CARDS ? INVALID : judge(index, FIND);
    if (code == OK && index >= script.gpus)
        code = INVALID;
    pthread_mutex_unlock(&mutex);
    if (code == OK)
        *device = &handles[index];
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { return handle_at(index, device); }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device)
{
    int index;
    if (sscanf(uuid, "GPU-fa4e0000-0000-0000-0000-%012d", &index) != 1)
        return NOT_FOUND;
    int found = handle_at(index, device);
    return found == INVALID ? NOT_FOUND : found;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *text, void **device)
{
    unsigned bus;
    if (sscanf(text, "%*x:%x:00.0", &bus) != 1)
        return NOT_FOUND;
    int found = handle_at((int)bus - 0x3b, device);
    return found == INVALID ? NOT_FOUND : found;
}

int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size)
{
    snprintf(uuid, size, "GPU-fa4e0000-0000-0000-0000-%012d", (int)((int *)device - handles));
    return OK;
}

int nvmlDeviceGetName(void *device, char *name, unsigned size)
{
    (void)device;
    snprintf(name, size, "Fake H200");
    return OK;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules)
{
    BEGIN(device, ENERGY);
    *millijoules = card->energy_uj / 1000;
    END;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts)
{
    BEGIN(device, POWER);
    *milliwatts = drawn_mw(card, wish, now_ms());
    END;
}

struct field { uint32_t id, scope; int64_t at, latency; int type, code; union { double d; uint32_t ui; uint64_t ull; } value; };

int nvmlDeviceGetFieldValues(void *device, int count, struct field *fields)
{
    BEGIN(device, FIELD);
    for (int i = 0; i < count; i++) {
        fields[i].code = fields[i].id == 186 ? OK : NOT_SUPPORTED;
        fields[i].type = 1;
        fields[i].value.ui = drawn_mw(card, wish, now_ms());
    }
    END;
}

int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts)
{
    BEGIN(device, LIMIT);
    *milliwatts = card->limit_mw;
    END;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts)
{
    BEGIN(device, ENFORCED);
    *milliwatts = enforced_mw(card, wish, now_ms());
    END;
}

int nvmlDeviceGetPowerManagementDefaultLimit(void *device, unsigned *milliwatts)
{
    BEGIN(device, DEFAULT);
    *milliwatts = DEFAULT_MW;
    END;
}

int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *lowest, unsigned *highest)
{
    BEGIN(device, RANGE);
    *lowest = LOWEST_MW;
    *highest = DEFAULT_MW;
    END;
}

int nvmlDeviceSetPowerManagementLimit(void *device, unsigned milliwatts)
{
    BEGIN(device, SET_LIMIT);
    if (milliwatts < LOWEST_MW || milliwatts > DEFAULT_MW) {
        leave();
        return INVALID;
    }
    card->previous_mw = enforced_mw(card, wish, now_ms());
    card->limit_mw = wish->step_mw ? milliwatts / wish->step_mw * wish->step_mw : milliwatts;
    card->limit_set_ms = now_ms();
    card->sets++;
    END;
}

int nvmlDeviceGetClockInfo(void *device, int type, unsigned *megahertz)
{
    BEGIN(device, CLOCK);
    (void)type;
    *megahertz = card->lock_high ? card->lock_high : 1980 * drawn_mw(card, wish, now_ms()) / wish->draw_mw;
    END;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius)
{
    BEGIN(device, TEMPERATURE);
    (void)sensor;
    *celsius = 47;
    END;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons)
{
    BEGIN(device, REASONS);
    *reasons = drawn_mw(card, wish, now_ms()) < wish->draw_mw ? 4 : 0;
    END;
}

int nvmlDeviceGetPersistenceMode(void *device, int *mode)
{
    BEGIN(device, PERSISTENCE);
    *mode = wish->persistence;
    END;
}

int nvmlDeviceSetGpuLockedClocks(void *device, unsigned low, unsigned high)
{
    BEGIN(device, LOCK_CLOCKS);
    card->lock_low = low;
    card->lock_high = high;
    card->sets++;
    END;
}

int nvmlDeviceResetGpuLockedClocks(void *device)
{
    BEGIN(device, LOCK_CLOCKS);
    card->lock_low = card->lock_high = 0;
    card->sets++;
    END;
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };

int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci)
{
    memset(pci, 0, sizeof *pci);
    pci->bus = 0x3b + ((int *)device - handles);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", pci->bus);
    return OK;
}
