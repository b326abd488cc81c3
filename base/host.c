/* Which machine this is, its processor's name, and memory of it that this process may use: the kernel's figures, or a
 * control group's where those are lower (a container, a Slurm job). Control groups, v1 and v2, have files with the
 * limit and the usage, in the group's folder and in its parents'. Usage includes the page cache, which the kernel
 * reclaims on demand. */
#include "base/base.h"

#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static bool read_number(const char *dir, const char *file, size_t *value)
{
    char *path = wz_path("%s/%s", dir, file), text[32] = "";
    FILE *f = fopen(path, "r");
    bool there = f && fgets(text, sizeof text, f);
    char *end;

    if (f) fclose(f);
    free(path);
    unsigned long long v = strtoull(text, &end, 10); /* "max" is no number */
    if (!there || end == text) return false;
    *value = (size_t)v;
    return true;
}

/* Bytes of inactive page cache, which is reclaimed first. */
static size_t read_cached(const char *dir)
{
    char *path = wz_path("%s/memory.stat", dir), line[128];
    FILE *f = fopen(path, "r");
    unsigned long long v = 0, n;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "inactive_file %llu", &n) == 1 || sscanf(line, "total_inactive_file %llu", &n) == 1) v = n;
    if (f) fclose(f);
    free(path);
    return (size_t)v;
}

static void apply_limit(const char *dir, const char *limit, const char *used, size_t *total, size_t *unused)
{
    size_t most, now;

    if (!read_number(dir, limit, &most) || !read_number(dir, used, &now)) return;
    size_t cached = read_cached(dir), held = now > cached ? now - cached : 0, left = most > held ? most - held : 0;
    if (most < *total) *total = most;
    if (left < *unused) *unused = left;
}

void wz_host_memory(size_t *total, size_t *unused)
{
    unsigned long long all = 0, available = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    char line[4096];

    while (f && fgets(line, sizeof line, f)) {
        sscanf(line, "MemTotal: %llu", &all);
        sscanf(line, "MemAvailable: %llu", &available);
    }
    if (f) fclose(f);
    *total = (size_t)all * 1024;
    *unused = (size_t)available * 1024;
    f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        char *group = strstr(line, ":memory:");
        bool v1 = group != NULL;
        if (!v1 && strncmp(line, "0::", 3)) continue;
        group = v1 ? group + 8 : line + 3;
        for (;;) { /* the group, its parents, the root */
            char *dir = wz_path("/sys/fs/cgroup%s%s", v1 ? "/memory" : "", group);
            if (v1) apply_limit(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", total, unused);
            else apply_limit(dir, "memory.max", "memory.current", total, unused);
            free(dir);
            char *slash = strrchr(group, '/');
            if (!slash) break;
            *slash = 0;
        }
    }
    if (f) fclose(f);
}

char *wz_host_processor(void)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[512], name[256] = "";
    struct utsname kernel;

    while (f && !*name && fgets(line, sizeof line, f)) sscanf(line, "model name : %255[^\n]", name);
    if (f) fclose(f);
    return wz_strdup(*name ? name : uname(&kernel) == 0 ? kernel.machine : "unknown processor");
}

void wz_host_id(char id[64])
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");

    if (!f || fscanf(f, "%63s", id) != 1) gethostname(id, 63);
    if (f) fclose(f);
    id[63] = 0;
}
