/* SentencePiece BPE from a .model (protobuf ModelProto) and from llama2.c's tokenizer .bin:
 *
 *   int32 longest piece, then for every id: float32 score, int32 length, bytes     (little endian)
 *
 * A .bin holds pieces with plain spaces; ids 0, 1, 2 are unknown, BOS and EOS. It has no normalizer settings, so
 * repeated spaces are kept, while a .model with remove_extra_whitespaces drops them: the two files of one vocabulary
 * may differ there. */
#include "text/tokenizer_inside.h"

#include <stdlib.h>
#include <string.h>

#include "sentencepiece.pb-c.h"

void wz_spm_stages(struct wz_tokenizer *tok, bool prefix, bool squeeze)
{
    static const struct {
        const char *kind, *pattern, *content;
    } squeezes[] = { { "Regex", "\\A +|[ \xe2\x96\x81]+\\z", "" }, { "Regex", " {2,}", " " } };
    json_t *parts = json_array(), *decoders = json_array();

    for (size_t i = 0; squeeze && i < WZ_COUNT(squeezes); i++)
        json_array_append_new(parts, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", squeezes[i].kind,
                                               squeezes[i].pattern, "content", squeezes[i].content));
    if (prefix) json_array_append_new(parts, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", "\xe2\x96\x81"));
    json_array_append_new(parts, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", " ",
                                           "content", "\xe2\x96\x81"));
    tok->normalizer = json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", parts);
    json_array_append_new(decoders, json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String",
                                              "\xe2\x96\x81", "content", " "));
    json_array_append_new(decoders, json_pack("{s:s}", "type", "ByteFallback"));
    json_array_append_new(decoders, json_pack("{s:s}", "type", "Fuse"));
    if (prefix)
        json_array_append_new(
            decoders, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    tok->decoder = json_pack("{s:s, s:o}", "type", "Sequence", "decoders", decoders);
    tok->squeeze = squeeze;
    tok->fuse_unk = true;
    tok->added_inside = true;
}

typedef Sentencepiece__ModelProto Model;

static int read_pieces(struct wz_tokenizer *tok, const Model *model, struct wz_err *err)
{
    if (model->n_pieces > WZ_VOCAB_MAX)
        return wz_fail(err, "%s: expected at most %d pieces, got %zu", tok->name, WZ_VOCAB_MAX, model->n_pieces);
    for (size_t i = 0; i < model->n_pieces; i++) {
        const Sentencepiece__SentencePiece *p = model->pieces[i];
        enum wz_piece_kind kind = p->type == SENTENCEPIECE__SENTENCE_PIECE__TYPE__NORMAL         ? WZ_PIECE_NORMAL
                                  : p->type == SENTENCEPIECE__SENTENCE_PIECE__TYPE__BYTE         ? WZ_PIECE_BYTE
                                  : p->type == SENTENCEPIECE__SENTENCE_PIECE__TYPE__USER_DEFINED ? WZ_PIECE_ADDED
                                                                                                 : WZ_PIECE_SPECIAL;
        if (p->type == SENTENCEPIECE__SENTENCE_PIECE__TYPE__UNKNOWN) tok->unk = (int)i;
        if (wz_vocab_add(tok, (int)i, p->piece, strlen(p->piece), kind, p->score, err) < 0) return -1;
    }
    return 0;
}

int wz_load_spm(struct wz_tokenizer *tok, const uint8_t *bytes, size_t n, struct wz_err *err)
{
    Model *model = sentencepiece__model_proto__unpack(NULL, n, bytes);
    Sentencepiece__TrainerSpec trainer_default = SENTENCEPIECE__TRAINER_SPEC__INIT, *trainer;
    Sentencepiece__NormalizerSpec normalizer_default = SENTENCEPIECE__NORMALIZER_SPEC__INIT, *normalizer;
    int rc = -1;

    if (!model) return wz_fail(err, "%s: not a SentencePiece model or another known tokenizer file", tok->name);
    trainer = model->trainer_spec ? model->trainer_spec : &trainer_default;
    normalizer = model->normalizer_spec ? model->normalizer_spec : &normalizer_default;
    if (trainer->model_type != SENTENCEPIECE__TRAINER_SPEC__MODEL_TYPE__BPE) {
        wz_fail(err, "%s: SentencePiece model_type: expected BPE (2), got %d", tok->name, (int)trainer->model_type);
        goto out;
    }
    if (normalizer->precompiled_charsmap.len || trainer->treat_whitespace_as_suffix ||
        !normalizer->escape_whitespaces) {
        wz_fail(err,
                "%s: SentencePiece normalizer: expected \"identity\", without a character map, spaces as suffix or "
                "unescaped spaces, got \"%.40s\"",
                tok->name, normalizer->name ? normalizer->name : "");
        goto out;
    }
    if (read_pieces(tok, model, err) < 0) goto out;
    tok->bos = trainer->bos_id;
    tok->eos = trainer->eos_id;
    tok->byte_fallback = trainer->byte_fallback;
    wz_merges_derive(tok);
    wz_spm_stages(tok, normalizer->add_dummy_prefix, normalizer->remove_extra_whitespaces);
    tok->as_read = true;
    rc = 0;
out:
    sentencepiece__model_proto__free_unpacked(model, NULL);
    return rc;
}

void wz_spm_pack(const struct wz_tokenizer *tok, struct wz_buf *out)
{
    Sentencepiece__TrainerSpec trainer = SENTENCEPIECE__TRAINER_SPEC__INIT;
    Sentencepiece__NormalizerSpec normalizer = SENTENCEPIECE__NORMALIZER_SPEC__INIT;
    Model model = SENTENCEPIECE__MODEL_PROTO__INIT;
    Sentencepiece__SentencePiece *pieces = wz_alloc(wz_mul((size_t)tok->n, sizeof *pieces));

    model.pieces = wz_alloc(wz_mul((size_t)tok->n, sizeof *model.pieces));
    for (int id = 0; id < tok->n; id++) {
        const struct wz_piece *p = &tok->pieces[id];
        pieces[id] = (Sentencepiece__SentencePiece)SENTENCEPIECE__SENTENCE_PIECE__INIT;
        pieces[id].piece = (char *)p->text;
        pieces[id].has_score = pieces[id].has_type = true;
        pieces[id].score = p->score;
        pieces[id].type = id == tok->unk               ? SENTENCEPIECE__SENTENCE_PIECE__TYPE__UNKNOWN
                          : p->kind == WZ_PIECE_NORMAL ? SENTENCEPIECE__SENTENCE_PIECE__TYPE__NORMAL
                          : p->kind == WZ_PIECE_BYTE   ? SENTENCEPIECE__SENTENCE_PIECE__TYPE__BYTE
                          : p->kind == WZ_PIECE_ADDED  ? SENTENCEPIECE__SENTENCE_PIECE__TYPE__USER_DEFINED
                                                       : SENTENCEPIECE__SENTENCE_PIECE__TYPE__CONTROL;
        model.pieces[model.n_pieces++] = &pieces[id];
    }
    model.trainer_spec = &trainer;
    trainer.has_model_type = trainer.has_byte_fallback = trainer.has_unk_id = trainer.has_bos_id = trainer.has_eos_id =
        true;
    trainer.model_type = SENTENCEPIECE__TRAINER_SPEC__MODEL_TYPE__BPE;
    trainer.byte_fallback = tok->byte_fallback;
    trainer.unk_id = tok->unk;
    trainer.bos_id = tok->bos;
    trainer.eos_id = tok->eos;
    model.normalizer_spec = &normalizer;
    normalizer.name = "identity";
    normalizer.has_add_dummy_prefix = normalizer.has_remove_extra_whitespaces = true;
    normalizer.add_dummy_prefix = tok->strip;
    normalizer.remove_extra_whitespaces = tok->squeeze;
    const size_t n = sentencepiece__model_proto__get_packed_size(&model);
    uint8_t *bytes = wz_alloc(n);
    sentencepiece__model_proto__pack(&model, bytes);
    wz_buf_add(out, (const char *)bytes, n);
    free(bytes);
    free(model.pieces);
    free(pieces);
}

static uint32_t u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

int wz_load_llama2c(struct wz_tokenizer *tok, const uint8_t *bytes, size_t n, struct wz_err *err)
{
    static const char *const first[] = { "<unk>", "<s>", "</s>" };
    struct wz_buf b = { 0 };
    size_t at = 4;
    int id = 0, rc = -1;

    for (; at < n; id++) {
        size_t left = n - at;
        uint32_t bits = left >= 8 ? u32(bytes + at) : 0, len = left >= 8 ? u32(bytes + at + 4) : 0;
        enum wz_piece_kind kind = id < 3 ? WZ_PIECE_SPECIAL : WZ_PIECE_NORMAL;
        float score;
        if (left < 8 || len > left - 8) {
            wz_fail(err, "%s: truncated at piece %d, byte %zu, or not a tokenizer file", tok->name, id, at);
            goto out;
        }
        memcpy(&score, &bits, sizeof score);
        wz_buf_clear(&b);
        if (id < 3) wz_buf_str(&b, first[id]);
        else
            for (size_t i = at + 8; i < at + 8 + len; i++)
                wz_buf_add(&b, bytes[i] == ' ' ? "\xe2\x96\x81" : (const char *)bytes + i, bytes[i] == ' ' ? 3 : 1);
        if (b.len == 6 && memcmp(b.data, "<0x", 3) == 0 && b.data[5] == '>') {
            kind = WZ_PIECE_BYTE;
            tok->byte_fallback = true;
        }
        if (wz_vocab_add(tok, id, b.data ? b.data : "", b.len, kind, score, err) < 0) goto out;
        at += 8 + len;
    }
    if (id < 4) {
        wz_fail(err, "%s: not a llama2.c tokenizer or another known tokenizer file", tok->name);
        goto out;
    }
    tok->unk = 0;
    tok->bos = 1;
    tok->eos = 2;
    wz_merges_derive(tok);
    wz_spm_stages(tok, true, false);
    rc = 0;
out:
    wz_buf_finish(&b);
    return rc;
}
