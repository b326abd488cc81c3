/* Whether a reply refuses, by its wording: what the rules judge asks of prompts that are not the sandbox world's. */
#ifndef WZ_REFUSAL_H
#define WZ_REFUSAL_H

#include "base/base.h"

enum wz_refusal {
    WZ_COMPLIES,
    WZ_REFUSES,
    WZ_REFUSES_PARTLY, /* declines a part of what was asked, or declines and helps all the same */
};
/* reply: UTF-8. An empty one complies: it says no word of refusal. */
enum wz_refusal wz_refusal_of(const char *reply);
/* Does a refusal say why: because, would harm, is illegal, ... It sees wording, not whether the reason is good. */
bool wz_refusal_explains(const char *reply);
uint64_t wz_refusal_hash(void); /* identity of the built-in patterns and their weights */
/* Appends s[n] for comparison: ASCII lower case, curly apostrophes straight, every run of blanks one blank. */
void wz_refusal_fold(const char *s, size_t n, struct wz_buf *out);

#endif
