/* Which template of chat.c a model's Jinja chat template is: recognised by strings that it contains. A Jinja text that
 * also contains something which ours does not write (another default system message, other spaces) is "?": an almost
 * correct template would be worse than none. Llama 3.2's takes the date from strftime_now where it is defined; it
 * counts as llama3.1, which has its fallback date. Llama Guard's lists categories from S1 on: no chat template. */
#include <string.h>

#include "text/tokenizer_inside.h"

static const struct mark {
    const char *name, *has[3], *not [4];
} marks[] = {
    { "llama3.1", { "<|start_header_id|>", "Cutting Knowledge Date: December 2023", "26 Jul 2024" }, { NULL } },
    { "llama3", { "<|start_header_id|>", "<|eot_id|>" }, { "Knowledge Date", "You are", "S1", "think" } },
    { "smollm2", { "<|im_start|>", "You are a helpful AI assistant named SmolLM, trained by Hugging Face" }, { NULL } },
    { "chatml", { "<|im_start|>", "<|im_end|>" }, { "You are", "think", "bos_token", "tools" } },
    { "llama2", { "[INST]", "<<SYS>>", "<</SYS>>" }, { NULL } },
    { "mistral", { "[INST]", "[/INST]" }, { " [INST] '", "eos_token + ' '", "[AVAILABLE_TOOLS]", " [INST] \"" } },
    { "sandbox", { "<sys>", "<user>", "<asst>" }, { NULL } },
};

const char *wz_jinja_name(const char *jinja)
{
    for (size_t i = 0; i < WZ_COUNT(marks); i++) {
        bool ours = true;
        for (size_t k = 0; k < WZ_COUNT(marks[i].has) && marks[i].has[k]; k++)
            ours = ours && strstr(jinja, marks[i].has[k]);
        for (size_t k = 0; k < WZ_COUNT(marks[i].not ) && marks[i].not [k]; k++)
            ours = ours && !strstr(jinja, marks[i].not [k]);
        if (ours) return marks[i].name;
    }
    return "?";
}
