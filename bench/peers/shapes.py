"""What the peers share: the shapes of bench/bench.c, and the columns that it prints."""
SHAPES = {  # layers, width, heads, kv heads, head size, ffn, vocabulary
    "tiny": (2, 64, 4, 2, 16, 192, 1024), "15m": (6, 288, 6, 6, 48, 768, 32000), "135m": (30, 576, 9, 3, 64, 1536, 49152),
    "1b": (16, 2048, 32, 8, 64, 8192, 128256), "8b": (32, 4096, 32, 8, 128, 14336, 128256),
}
COLUMNS = "program,shape,type,batch,prompt,new,threads,prefill_tok_s,tok_s,peak_mb,faults_step,allocations_step,gb_s,gflop_s,others_percent"


def show(a, program, **columns):
    """The header and the line of one result; a: the parsed options."""
    columns = {**vars(a), "program": program, **columns}
    text = lambda x: f"{x:.1f}" if isinstance(x, float) else str(x)
    print(COLUMNS)
    print(",".join(text(columns.get(name, "")) for name in COLUMNS.split(",")))
