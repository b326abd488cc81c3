/* row: the entry of cuda in the table of backends. The backend is a shared library beside the program, loaded on first
 * use, so that the program starts on machines without CUDA. WZ_CUDA_PLUGIN names another library (the tests' build of
 * the kernels for the host). */
#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/plugin.h"

static const struct wz_cuda_plugin *opened; /* never unloaded: CUDA does not support that */

static int open_module(struct wz_err *err)
{
    char self[PATH_MAX] = "", *path = NULL;
    const char *named = getenv("WZ_CUDA_PLUGIN");
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    struct wz_cuda_plugin *plugin;
    int rc = -1;

    if (n > 0) *strrchr(self, '/') = '\0';
    if (named && !*named) named = NULL;
    path = named ? wz_strdup(named) : wz_path("%s/libwaltz_cuda.so", self);
    void *module = NULL;
    if (!wz_file_exists(path))
        wz_fail(err, "backend \"cuda\": there is no %s: %s%s", path,
                named            ? "WZ_CUDA_PLUGIN names it"
                : *WZ_CUDA_BUILT ? "this Waltz was built without it: "
                                 : "it was made by the build, but is not beside the program",
                named ? "" : WZ_CUDA_BUILT);
    else if (!named && !dlopen("libcuda.so.1", RTLD_LAZY))
        wz_fail(err, "backend \"cuda\": this machine has no NVIDIA driver (%s)", dlerror());
    else if (!(module = dlopen(path, RTLD_NOW | RTLD_LOCAL))) wz_fail(err, "backend \"cuda\": %s", dlerror());
    else if (!(plugin = dlsym(module, "wz_cuda_plugin")) || plugin->ops != sizeof(struct wz_ops) ||
             plugin->weight != sizeof(struct wz_weight) || plugin->backend != sizeof(struct wz_backend) ||
             plugin->device != sizeof(struct wz_device))
        wz_fail(err, "backend \"cuda\": %s is of another version of Waltz", path);
    else {
        plugin->die = wz_die;
        opened = plugin;
        rc = 0;
    }
    free(path);
    return rc;
}

static int open_cuda(struct wz_backend *be, struct wz_err *err)
{
    if (!opened && open_module(err) < 0) return -1;
    return opened->open(be, err);
}

static void close_cuda(struct wz_backend *be) { opened->close(be); }

static int devices(struct wz_backend *be, size_t *total, size_t *unused) { return opened->devices(be, total, unused); }

const struct wz_backend_row wz_backend_cuda = { open_cuda, close_cuda, wz_cuda_packed, devices, true, 16, false };
