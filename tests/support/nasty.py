"""Texts that break careless templates, and names of folders that break careless recipes."""

FOLDER = "it's 100 % $HOME & a #folder"
# PostgreSQL's initdb fails in a path with `$`.
DATABASE_FOLDER = FOLDER.replace("$", "")

ACCEPTED = {
    "double-quote": 'The "best" service',
    "only-double-quotes": '"""',
    "single-quotes": "It's '''ours'''",
    "backslash-at-the-end": "Windows \\",
    "backslash-n": "no\\new line \\t \\u0041 \\x41",
    "backslash-and-quotes": '\\"\\\'\\\\"',
    "percent": "100 % %s %(name)s %%",
    "dollar": "$HOME ${HOME} $(id) $$",
    "backtick": "`id`",
    "hash": "# not a comment # ",
    "ampersand-and-angles": "<b>R&D</b> &amp; <!-- -->",
    "braces": "{name} }} %} #} [link](x) ![x]",
    "yaml": "- key: [value, *anchor] | > ! @ ?",
    "null": "null",
    "true": "true",
    "number": "3.140",
    "only-digits": "2048",
    "assignment": "SECRET_KEY=1; rm -rf / && echo | cat > x",
    "accents": "Éléphant à Zürich, naïve ñandú",
    "combining": "e\u0301 a\u0308",
    "chinese": "服务",
    "arabic": "خدمة",
    "persian-joiner": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "emoji": "🚀",
    "emoji-of-parts": "\U0001f469\u200d\U0001f467 \U0001f3f4\U000e0067\U000e0062\U000e007f \u2764\ufe0f",
    "no-break-space": "10\u00a0000",
    "one-letter": "X",
    "longest": "long " * 40,
    "longest-word": "w" * 200,
}

REFUSED = {
    "blank": "   ",
    "too-long": "x" * 201,
    "line-feed": "two\nlines",
    "vertical-tab": "a\vb",
    "tab": "a\tb",
    "escape": "\x1b[31mred",
    "delete": "a\x7fb",
    "next-line": "a\x85b",
    "line-separator": "a\u2028b",
    "right-to-left-override": "a\u202eb",
    "byte-order-mark": "\ufeffa",
    "no-character": "a\uffffb",
}
