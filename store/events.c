/* TensorBoard's event file: a sequence of records (TFRecord).
 *
 *   u64 length │ u32 masked crc32c of the length │ the Event (event.proto) │ u32 masked crc32c of the Event
 *   (little endian)
 *
 * crc32c: polynomial 0x1edc6f41 reflected, initial value and final XOR all ones. masked: rotated right by 15, plus
 * 0xa282ead8. The first record holds file_version "brain.Event:2". */
#include "store/append.h"

#include <stdlib.h>

uint32_t wz_crc32c(const void *bytes, size_t n)
{
    const uint8_t *b = bytes;
    uint32_t crc = ~0u;

    for (size_t i = 0; i < n; i++) {
        crc ^= b[i];
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static void put_masked(struct wz_buf *out, const void *bytes, size_t n)
{
    uint32_t crc = wz_crc32c(bytes, n), masked = (crc >> 15 | crc << 17) + 0xa282ead8u;

    wz_buf_add(out, &masked, 4);
}

void wz_events_record(struct wz_buf *out, const Wz__Event *event)
{
    struct wz_buf body = { 0 };
    wz_event_pack(event, &body);
    uint64_t len = body.len;

    wz_buf_add(out, &len, 8);
    put_masked(out, &len, 8);
    wz_buf_add(out, body.data, body.len);
    put_masked(out, body.data, body.len);
    wz_buf_finish(&body);
}

void wz_events_version(struct wz_buf *out, double wall)
{
    Wz__Event e = WZ__EVENT__INIT;

    e.wall_time = wall;
    e.what_case = WZ__EVENT__WHAT_FILE_VERSION;
    e.file_version = (char[]){ "brain.Event:2" };
    wz_events_record(out, &e);
}

void wz_events_restart(struct wz_buf *out, double wall, int64_t step)
{
    Wz__Event e = WZ__EVENT__INIT;
    Wz__SessionLog start = WZ__SESSION_LOG__INIT;

    start.status = WZ__SESSION_LOG__STATUS__START;
    e.wall_time = wall;
    e.step = step;
    e.what_case = WZ__EVENT__WHAT_SESSION_LOG;
    e.session_log = &start;
    wz_events_record(out, &e);
}

void wz_events_scalars(struct wz_buf *out, double wall, int64_t step, const char *const *names, const double *values,
                       int n)
{
    Wz__Event e = WZ__EVENT__INIT;
    Wz__Summary summary = WZ__SUMMARY__INIT;
    Wz__Summary__Value *list = wz_alloc(wz_mul(sizeof *list, (size_t)n)),
                       **at = wz_alloc(wz_mul(sizeof *at, (size_t)n));

    for (int i = 0; i < n; i++) {
        wz__summary__value__init(&list[i]);
        list[i].tag = (char *)(uintptr_t)names[i];
        list[i].value_case = WZ__SUMMARY__VALUE__VALUE_SIMPLE_VALUE;
        list[i].simple_value = (float)values[i];
        at[i] = &list[i];
    }
    summary.n_value = (size_t)n;
    summary.value = at;
    e.wall_time = wall;
    e.step = step;
    e.what_case = WZ__EVENT__WHAT_SUMMARY;
    e.summary = &summary;
    wz_events_record(out, &e);
    free(list);
    free(at);
}
