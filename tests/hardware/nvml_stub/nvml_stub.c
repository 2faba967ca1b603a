/* A libnvidia-ml.so without a driver: it answers what the file named by NVML_STUB_SCENARIO says.
 *
 * The file holds lines "key = value" and is read anew at each call, so that a test changes what the driver says while
 * a program runs. A key that is missing makes its question unsupported; "error.<function>" is the code that a
 * function returns, "card.0.error.<function>" the same for one card. Signatures are those of nvml.h.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { PARTS_PER_CARD = 8, TEXT_BYTES = 256 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct {
    char legacy_bus[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;

static int find(const char *key, char *value) {
    const char *path = getenv("NVML_STUB_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[2 * TEXT_BYTES];
    size_t length = strlen(key);
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        found = strncmp(line, key, length) == 0 && strncmp(line + length, " = ", 3) == 0;
        if (found) {
            snprintf(value, TEXT_BYTES, "%s", line + length + 3);
            value[strcspn(value, "\n")] = 0;
        }
    }
    if (file) fclose(file);
    return found;
}

static int ordered_error(const char *prefix, const char *function) {
    char key[TEXT_BYTES], value[TEXT_BYTES];
    snprintf(key, sizeof key, "%serror.%s", prefix, function);
    return find(key, value) ? atoi(value) : SUCCESS;
}

/* A handle is 1 + card * (PARTS_PER_CARD + 1) + part; part 0 is the card itself. */
static void *handle_of(unsigned card, unsigned part) {
    return (void *)(uintptr_t)(1 + card * (PARTS_PER_CARD + 1) + part);
}

static void prefix_of(void *handle, char *prefix) {
    unsigned place = (unsigned)(uintptr_t)handle - 1;
    unsigned card = place / (PARTS_PER_CARD + 1), part = place % (PARTS_PER_CARD + 1);
    if (part) snprintf(prefix, TEXT_BYTES, "card.%u.part.%u.", card, part - 1);
    else snprintf(prefix, TEXT_BYTES, "card.%u.", card);
}

static int ask(void *handle, const char *function, const char *name, char *value) {
    char prefix[TEXT_BYTES], key[2 * TEXT_BYTES];
    int error = ordered_error("", function);
    prefix_of(handle, prefix);
    if (!error) error = ordered_error(prefix, function);
    if (error) return error;
    snprintf(key, sizeof key, "%s%s", prefix, name);
    return find(key, value) ? SUCCESS : NOT_SUPPORTED;
}

static int ask_text(void *handle, const char *function, const char *name, char *text, unsigned length) {
    char value[TEXT_BYTES];
    int error = ask(handle, function, name, value);
    if (!error) snprintf(text, length, "%s", value);
    return error;
}

static int ask_number(void *handle, const char *function, const char *name, unsigned *number) {
    char value[TEXT_BYTES];
    int error = ask(handle, function, name, value);
    if (!error) *number = (unsigned)atoi(value);
    return error;
}

static int ask_system(const char *function, const char *key, char *value) {
    int error = ordered_error("", function);
    if (error) return error;
    return find(key, value) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return ordered_error("", "nvmlInit"); }

int nvmlShutdown(void) { return ordered_error("", "nvmlShutdown"); }

const char *nvmlErrorString(int code) { (void)code; return "an error of the stub"; }

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    char value[TEXT_BYTES];
    int error = ask_system(__func__, "driver", value);
    if (!error) snprintf(text, length, "%s", value);
    return error;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    char value[TEXT_BYTES];
    int error = ask_system(__func__, "cuda", value);
    if (!error) *version = atoi(value);
    return error;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    char value[TEXT_BYTES];
    int error = ask_system(__func__, "cards", value);
    if (!error) *count = (unsigned)atoi(value);
    return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    unsigned count = 0;
    char value[TEXT_BYTES];
    int error = nvmlDeviceGetCount_v2(&count);
    if (error) return error;
    if (index >= count) return INVALID_ARGUMENT;
    *handle = handle_of(index, 0);
    error = ask(*handle, __func__, "name", value);
    return error == NOT_SUPPORTED ? SUCCESS : error;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    unsigned count = 0;
    int error = nvmlDeviceGetCount_v2(&count);
    for (unsigned card = 0; !error && card < count; card++) {
        for (unsigned part = 0; part <= PARTS_PER_CARD; part++) {
            char value[TEXT_BYTES];
            error = ask(handle_of(card, part), __func__, "uuid", value);
            if (!error && strcmp(value, uuid) == 0) {
                *handle = handle_of(card, part);
                return SUCCESS;
            }
            if (error == NOT_SUPPORTED) error = SUCCESS;
        }
    }
    return error ? error : NOT_FOUND;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned length) {
    return ask_text(handle, __func__, "name", text, length);
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned length) {
    return ask_text(handle, __func__, "uuid", text, length);
}

int nvmlDeviceGetPciInfo_v3(void *handle, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    return ask_text(handle, __func__, "bus", pci->bus_id, sizeof pci->bus_id);
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    char total[TEXT_BYTES], free[TEXT_BYTES];
    int error = ask(handle, __func__, "total", total);
    if (!error) error = ask(handle, __func__, "free", free);
    if (error) return error;
    memory->total = strtoull(total, NULL, 10);
    memory->free = strtoull(free, NULL, 10);
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetCurrPcieLinkGeneration(void *handle, unsigned *number) {
    return ask_number(handle, __func__, "generation", number);
}

int nvmlDeviceGetCurrPcieLinkWidth(void *handle, unsigned *number) {
    return ask_number(handle, __func__, "lanes", number);
}

int nvmlDeviceGetMaxPcieLinkGeneration(void *handle, unsigned *number) {
    return ask_number(handle, __func__, "max_generation", number);
}

int nvmlDeviceGetMaxPcieLinkWidth(void *handle, unsigned *number) {
    return ask_number(handle, __func__, "max_lanes", number);
}

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    char value[TEXT_BYTES];
    int error = ask(handle, __func__, "capability", value);
    if (error) return error;
    return sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *now, unsigned *pending) {
    int error = ask_number(handle, __func__, "mig", now);
    *pending = *now;
    return error;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    (void)handle;
    *count = PARTS_PER_CARD - 1;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part) {
    char value[TEXT_BYTES];
    *part = (char *)handle + index + 1;
    return ask(*part, __func__, "uuid", value) ? NOT_FOUND : SUCCESS;
}

/* Processes are lines "card.0.process.0 = <pid, or own> <bytes, or unknown> <compute or graphics>". */
static int list_processes(void *handle, const char *function, const char *kind, unsigned *count, Process *processes) {
    unsigned room = *count, found = 0;
    char value[TEXT_BYTES], key[TEXT_BYTES], pid[32], used[32], told[32];
    int error = ask(handle, function, "processes", value);
    if (error) return error;
    for (int place = 0;; place++) {
        snprintf(key, sizeof key, "process.%d", place);
        if (ask(handle, function, key, value)) break;
        if (sscanf(value, "%31s %31s %31s", pid, used, told) != 3 || strcmp(told, kind)) continue;
        if (processes && found < room) {
            memset(&processes[found], 0, sizeof(Process));
            processes[found].pid = strcmp(pid, "own") ? (unsigned)atoi(pid) : (unsigned)getpid();
            processes[found].used = strcmp(used, "unknown") ? strtoull(used, NULL, 10) : ~0ULL;
        }
        found++;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *processes) {
    return list_processes(handle, __func__, "compute", count, processes);
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, Process *processes) {
    return list_processes(handle, __func__, "compute", count, processes);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, Process *processes) {
    return list_processes(handle, __func__, "graphics", count, processes);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(void *handle, unsigned *count, Process *processes) {
    return list_processes(handle, __func__, "graphics", count, processes);
}
