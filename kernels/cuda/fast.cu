/* fast: matrix products by cuBLASLt (numerics.fast), bf16 on tensor cores and f32 in f32, all with f32 sums.
 *
 * cuBLASLt's heuristic chooses the algorithm once per key (shapes, strides, alignments), and the plan is cached by the
 * key's hash, so that a run repeats its bits; a replaced plan is made again, with the same result. The workspace is
 * allocated when the backend is opened.
 *
 * The library is opened with dlopen when numerics.fast is first asked for, so that exact runs need no cuBLAS. */
#include <cublasLt.h>
#include <dlfcn.h>

#include <string>

#include "kernels/cuda/cuda.cuh"

enum { PLANS = 1024, WORKSPACE = 64 << 20 };

/* cuBLASLt is column-major: a row-major c[m,n] is its c[n,m], computed as b times a. */
struct key {
    int64_t m, n, k, ld[3], transposed[2], aligned[3], type;
};

struct plan {
    struct key key;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algo;
};

struct fast {
    cublasLtHandle_t handle;
    void *work;
    struct plan plans[PLANS];
};

#define EACH_CALL(row)                                                                                            \
    row(Create) row(Destroy) row(MatmulDescCreate) row(MatmulDescDestroy) row(MatmulDescSetAttribute)             \
        row(MatrixLayoutCreate) row(MatrixLayoutDestroy) row(MatmulPreferenceCreate) row(MatmulPreferenceDestroy) \
            row(MatmulPreferenceSetAttribute) row(MatmulAlgoGetHeuristic) row(Matmul)

static struct {
#define MEMBER(name) decltype(&cublasLt##name) name;
    EACH_CALL(MEMBER)
    bool found; /* all of them */
} lt;           /* lt.X is cublasLtX */

static int open_library(struct wz_err *err)
{
    const char *named = getenv("WZ_CUBLASLT_LIBRARY"), *missing = NULL;
    std::string name = named && *named ? named : "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);

    if (lt.found) return 0;
    void *library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    const char *why = library ? "" : dlerror();
#define FIND(name) \
    if (library && !(lt.name = (decltype(lt.name))dlsym(library, "cublasLt" #name))) missing = "cublasLt" #name;
    EACH_CALL(FIND)
    lt.found = library && !missing;
    if (lt.found) return 0;
    snprintf(err->text, sizeof err->text, "backend \"cuda\": numerics.cuda=fast needs cuBLASLt: %s%s%s",
             missing ? name.c_str() : why, missing ? " has no " : "", missing ? missing : "");
    return -1;
}

#define ASK(name, ...) ask(lt.name(__VA_ARGS__), "cublasLt" #name)
static void ask(cublasStatus_t status, const char *call)
{
    if (status != CUBLAS_STATUS_SUCCESS) wz_cuda_plugin.die("cuda: %s: status %d", call, status);
}

static void plan_finish(struct plan *p)
{
    if (p->desc) lt.MatmulDescDestroy(p->desc);
    if (p->a) lt.MatrixLayoutDestroy(p->a);
    if (p->b) lt.MatrixLayoutDestroy(p->b);
    if (p->c) lt.MatrixLayoutDestroy(p->c);
    memset(p, 0, sizeof *p);
}

static cublasLtMatrixLayout_t layout(const struct key *k, cudaDataType_t type, bool transposed, int64_t rows,
                                     int64_t cols, int64_t ld)
{
    cublasLtMatrixLayout_t made;
    int64_t high = transposed ? cols : rows, wide = transposed ? rows : cols;

    if (wide == 1) ld = high; /* one column: its step may be anything but is held to this */
    ASK(MatrixLayoutCreate, &made, type, (uint64_t)high, (uint64_t)wide, ld);
    return made;
}

static void plan_make(struct fast *fast, struct plan *p, const struct key *k)
{
    cudaDataType_t type = k->type == WZ_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    cublasOperation_t op_a = k->transposed[0] ? CUBLAS_OP_T : CUBLAS_OP_N,
                      op_b = k->transposed[1] ? CUBLAS_OP_T : CUBLAS_OP_N;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    cublasLtMatmulHeuristicResult_t found;
    cublasLtMatmulPreference_t pref;
    size_t most = WORKSPACE;
    int n = 0;

    plan_finish(p);
    p->key = *k;
    ASK(MatmulDescCreate, &p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    ASK(MatmulDescSetAttribute, p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a);
    ASK(MatmulDescSetAttribute, p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b);
    p->a = layout(k, type, k->transposed[0], k->n, k->k, k->ld[0]);
    p->b = layout(k, type, k->transposed[1], k->k, k->m, k->ld[1]);
    p->c = layout(k, CUDA_R_32F, false, k->n, k->m, k->ld[2]);
    ASK(MatmulPreferenceCreate, &pref);
    ASK(MatmulPreferenceSetAttribute, pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
    for (int i = 0; i < 4; i++) {
        uint32_t bytes = (uint32_t)k->aligned[i < 2 ? i : 2];
        ASK(MatmulPreferenceSetAttribute, pref, alignments[i], &bytes, sizeof bytes);
    }
    cublasStatus_t status =
        lt.MatmulAlgoGetHeuristic(fast->handle, p->desc, p->a, p->b, p->c, p->c, pref, 1, &found, &n);
    lt.MatmulPreferenceDestroy(pref);
    if (status != CUBLAS_STATUS_SUCCESS || n == 0)
        wz_cuda_plugin.die("cuda: cuBLASLt has no way to multiply [%ld, %ld] by [%ld, %ld]: status %d", (long)k->m,
                           (long)k->k, (long)k->k, (long)k->n, (int)status);
    p->algo = found.algo;
}

/* The power of two that an address is a multiple of, at most 256. */
static int64_t alignment(const void *p)
{
    size_t a = (size_t)p | 256;

    return (int64_t)(a & ~(a - 1));
}

void wz_cuda_fast_product(struct wz_backend *be, const struct product *p)
{
    struct fast *fast = cuda_of(be)->fast;
    struct key key = { p->m,
                       p->n,
                       p->k,
                       { (int64_t)(p->bn == 1 ? p->bk : p->bn), (int64_t)(p->ak == 1 ? p->am : p->ak),
                         (int64_t)p->ldc },
                       { p->bn != 1, p->ak != 1 },
                       { alignment(p->b), alignment(p->a), alignment(p->c) },
                       p->type };
    const int64_t *words = (const int64_t *)&key;
    uint64_t hash = 0;
    float one = 1, beta = p->add;

    for (size_t i = 0; i < sizeof key / sizeof *words; i++) {
        hash = (hash ^ (uint64_t)words[i]) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 29;
    }
    struct plan *plan = &fast->plans[hash % PLANS];
    if (!wz_cuda_ask(be, wz_cuda_fast_product, *p)) return;
    if (memcmp(&plan->key, &key, sizeof key)) plan_make(fast, plan, &key);
    ASK(Matmul, fast->handle, plan->desc, &one, p->b, plan->a, p->a, plan->b, &beta, p->c, plan->c, p->c, plan->c,
        &plan->algo, fast->work, WORKSPACE, cuda_of(be)->stream);
}

int wz_cuda_fast_open(struct wz_backend *be, struct wz_err *err)
{
    struct fast *fast = cuda_of(be)->fast = (struct fast *)calloc(1, sizeof *fast);

    if (!fast) wz_cuda_plugin.die("cuda: no memory for %zu bytes", sizeof *fast);
    if (open_library(err) < 0) return -1;
    cublasStatus_t status = lt.Create(&fast->handle);
    if (status != CUBLAS_STATUS_SUCCESS)
        return snprintf(err->text, sizeof err->text, "backend \"cuda\": cuBLASLt does not start: status %d",
                        (int)status),
               -1;
    cudaError_t error = cudaMalloc(&fast->work, WORKSPACE);
    if (error == cudaSuccess) return 0;
    snprintf(err->text, sizeof err->text, "backend \"cuda\": %d bytes for cuBLASLt: %s", WORKSPACE,
             cudaGetErrorString(error));
    return -1;
}

void wz_cuda_fast_close(struct wz_backend *be)
{
    struct fast *fast = cuda_of(be)->fast;

    if (!fast) return;
    for (struct plan &p : fast->plans) plan_finish(&p);
    if (fast->handle) lt.Destroy(fast->handle);
    cudaFree(fast->work);
    free(fast);
}
