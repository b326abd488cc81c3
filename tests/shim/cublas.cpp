/* shim: cuBLAS as plain loops, columns first as it counts. */
#include <cublas_v2.h>
#include <cuda_bf16.h>

struct shim_blas { cudaStream_t stream; };

cublasStatus_t cublasCreate(cublasHandle_t *handle)
{
    *handle = new shim_blas();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasDestroy(cublasHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream)
{
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

static float at(const void *p, cudaDataType_t type, cublasOperation_t op, int row, int col, int ld)
{
    size_t i = op == CUBLAS_OP_N ? (size_t)row + (size_t)col * (size_t)ld : (size_t)col + (size_t)row * (size_t)ld;

    return type == CUDA_R_32F ? ((const float *)p)[i] : __bfloat162float(((const __nv_bfloat16 *)p)[i]);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType_t type_a, int lda, const void *b,
                            cudaDataType_t type_b, int ldb, const void *beta, void *c, cudaDataType_t type_c, int ldc,
                            cublasComputeType_t compute, cublasGemmAlgo_t algo)
{
    if (type_a != type_b || type_c != CUDA_R_32F) return 15;      /* not supported, as there */
    shim_device_open(true);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            float sum = 0, *to = (float *)c + (size_t)i + (size_t)j * (size_t)ldc;
            for (int l = 0; l < k; l++) sum += at(a, type_a, op_a, i, l, lda) * at(b, type_b, op_b, l, j, ldb);
            *to = *(const float *)alpha * sum + (*(const float *)beta != 0 ? *(const float *)beta * *to : 0);
        }
    shim_device_open(false);
    return CUBLAS_STATUS_SUCCESS;
}
