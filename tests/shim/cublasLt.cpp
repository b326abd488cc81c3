/* shim: cuBLASLt as plain loops, columns first as it counts. */
#include <cublasLt.h>
#include <cuda_bf16.h>

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { return cudaStreamCreateWithFlags(handle, 0); }

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return cudaStreamDestroy(handle); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale)
{
    *desc = new shim_matmul();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t size)
{
    *(what == CUBLASLT_MATMUL_DESC_TRANSA ? &desc->a : &desc->b) = *(const cublasOperation_t *)value;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t cols, int64_t ld)
{
    *layout = new shim_matrix{ type, rows, cols, ld };
    return rows && cols ? CUBLAS_STATUS_SUCCESS
                        : CUBLAS_STATUS_NOT_SUPPORTED; /* the library does not promise to take it */
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *pref)
{
    *pref = new shim_matmul();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t pref)
{
    delete pref;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
                                                    const void *, size_t)
{
    return CUBLAS_STATUS_SUCCESS;
}

static bool fits(const struct shim_matrix *x, cublasOperation_t op, uint64_t rows, uint64_t cols)
{
    return (op == CUBLAS_OP_N ? x->rows : x->cols) == rows && (op == CUBLAS_OP_N ? x->cols : x->rows) == cols &&
           (int64_t)x->rows <= x->ld;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t pref, int most,
                                              cublasLtMatmulHeuristicResult_t *found, int *n)
{
    uint64_t deep = desc->a == CUBLAS_OP_N ? a->cols : a->rows;

    *n = fits(a, desc->a, c->rows, deep) && fits(b, desc->b, deep, c->cols) && a->type == b->type &&
         c->type == CUDA_R_32F;
    return *n ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static float at(const void *p, const struct shim_matrix *x, cublasOperation_t op, uint64_t row, uint64_t col)
{
    size_t i = op == CUBLAS_OP_N ? row + col * (size_t)x->ld : col + row * (size_t)x->ld;

    return x->type == CUDA_R_32F ? ((const float *)p)[i] : __bfloat162float(((const __nv_bfloat16 *)p)[i]);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t at_a, const void *b, cublasLtMatrixLayout_t at_b, const void *beta,
                              const void *c, cublasLtMatrixLayout_t at_c, void *d, cublasLtMatrixLayout_t at_d,
                              const cublasLtMatmulAlgo_t *algo, void *work, size_t size, cudaStream_t stream)
{
    shim_matmul how = *desc;
    shim_matrix in_a = *at_a, in_b = *at_b, out = *at_d;
    uint64_t deep = how.a == CUBLAS_OP_N ? in_a.cols : in_a.rows;
    float old = *(const float *)beta, by = *(const float *)alpha;

    shim_do(stream, [=] {
        shim_device_open(true);
        for (uint64_t j = 0; j < out.cols; j++)
            for (uint64_t i = 0; i < out.rows; i++) {
                float sum = 0, *to = (float *)d + i + j * (size_t)out.ld;
                for (uint64_t k = 0; k < deep; k++) sum += at(a, &in_a, how.a, i, k) * at(b, &in_b, how.b, k, j);
                *to = by * sum + (old != 0 ? old * *to : 0);
            }
        shim_device_open(false);
    });
    return CUBLAS_STATUS_SUCCESS;
}
