# ruff: noqa: E501  (the texts are data)
"""Write ptb_golden.jsonl: texts of our own and what the Java tokeniser makes of them.

python -m tests.metrics.make_ptb_golden
"""

import json
import random
from pathlib import Path

from tests.metrics import java_ptb

GOLDEN = Path(__file__).with_name("ptb_golden.jsonl")

TEXTS = r"""
A dog runs on the beach.
Two men in hats , and a child .
A T-shirt that says "Hello, World!"
the grey colour of the harbour theatre
a well-known twenty-one-year-old mother-in-law's x-ray
can't won't cannot gonna gotta wanna lemme gimme Cannot GONNA cannots cannot-do gonna's cannot'
don't isn't aren't ain't couldn't've didn't. n't N'T an't nn't inn't
it's he'll they've I'd I'm you're we're dog's dogs' 's 'S 'll 're 've 'd 'm
don’t it’s they’ll dogs’ ’s o’clock ma’am c’mon ’em ’90s ’80 ’til ’cause rock ’n’ roll ’nx
don`t it`s o`clock ma`am did‘t don´t donʼt don′t
don&apos;t it&apos;s &quot;a&quot; &amp; a&amp;b AT&amp;T &lt;b&gt; &nbsp; &mdash; caf&eacute; &#39; &copy;
'tis 'twas 'Twas 'tisn't d'ye more'n 'em 'emma y'all Y'all ma'am o'clock e'er ne'er o'er li'l cap'n c'mon
rock'n'roll rock 'n' roll fish'n'chips jack-o'-lantern somethin' goin' ol' runnin' 'cause 'til 'till 'bout
O'Brien D'Angelo l'eau d'accord qu'il c'est j'ai n'est O'Neill's x'ab X'ab I'ab d'a d'ab ka'a Hawai'i aO'Brien
80's '80s '80 '90s. '10s '85s '5 '999 1980's 1990s 90s
U.S. USA U.S.A. u.s. U.K. D.C. J.R.R. Tolkien J. R. a.m. p.m. A.M. 10 a.m. 10a.m. e.g. i.e. etc. etc
Mr. Smith, Mrs. Jones, Ms. X, Dr. No, St. Paul, Jr. Sr. Prof. Gen. Inc. Ltd. Co. Corp. Bros. vs. v. no. No. 5
no.5 No. five Fig. 3 fig. a p. 5 pp. 5-6 Jan. Feb. May. Sept. Mon. Sat. Sun. approx. ft. in. lb. Mass. mass. Wash. wash.
etc.b etc.ab etc.abc St.Louis Inc.x Mr.x Mr.-x inc.-x Ph.D. Ph.D.x M.Sc. a.b.c a.b.c. x.y.
vitamin C. The dog vitamin C. They vitamin C. Dog plan B. It is plan B. it is U.S. The
word., word.; word.: word.! 1., a1., x-1., a.-b U.S.-led pre-U.S. Jan.-Feb. a-b.c. a.b-c 1.5-inch 2.5-3.5
1 2 12 1,000 1,234,567 1.5 .5 0.5 1. 5,6 1:30 12:30pm 1:2:3 -5 +5 ±5 5-6 5+6 5*6 5=6 5/6 1st 2nd 3rd 100th 3d 2x4
1/2 3 1/2 10 1/2 1/2-inch 3-1/2 1/2/3 12/25/2010 24/7 1⁄2 ½ ¼ ¾ ⅓ ⅔ ⅛ 3½ 3 ½ ½-inch
555-1234 555-123-4567 (555) 123-4567 (555)123-4567 555 123 4567 +44 20 1234 5678 12 34 56 100 200 300 123 456789
$5 $5.00 $ 5 US$5 A$5 5$ £5 €5 ¥5 5¢ 5% #5 # 5 #tag #tag1 @user @user_1 @ # 5.x 9.x,
a@b a@b.com me.you@foo.co.uk, <me@foo.com> mailto:me@foo.com http://foo.com http://foo.com/a?b=c. https://x.y, http://x
www.foo.com www.foo.com/bar, foo.com foo.com/bar foo.org/x FOO.COM/bar foo-bar.com foo.co.uk ftp://foo.com node.js
AT&T A&P R&B r&b Q&A M&M's A & B a&b A+B a+b C++ c++ C# F# c#x .NET
and/or he/she/it a/b/c/d km/h w/o c/o w/ black/white and-or/x 1/a a/1 \/ a\/b \* a*b * ** ***
(a) [b] {c} ((d)) a(b) (s)he dog(s) 1) a) (1)
<b>bold</b> <br/> <br /> <a href="x y">z</a> <img src=1> < b > a<b <!-- hi --> </b> <3 << >> <person> <unk> <eos>
:) :-) :( ;) :D :P :/ =) :'( <3 :)a :D1 ^_^ -_- >_< (^_^) (^^) (-_-) o_O T_T x_x (x_x)
. .. ... .... ..... . . . ? ! ?! !? !!! ??? , ; : - -- --- ---- ----- _ __ _____ * ~ ^ | \ / & && = == + ++ % $ $$ @@ ##
"a" 'a' ``a'' `a' ''a'' "'a'" '"a"' “a” ‘a’ «a» ‹a› „a“ ‚a‘ ”’ ’” “‘ ’’ ”” 5'10" 5′10″
a – b — c ― d a–b a—b a―b a‐b a‑b a−b 5–6 2010–2012 a ‒ b
… a… …b a…b ‥ ¡hola! ¿qué? naïve café façade Zürich ñandú Ærø Straße ﬁne ĳs Ångström İstanbul ΣΊΣΥΦΟΣ Привет
犬が走る 日本語 中文字 한국어 สวัสดี مرحبا שלום नमस्ते தமிழ் 1中2 a中b 犬。猫、鳥！ （a） 「b」 ＡＢＣ １２３ ，
😀 a😀b 👨‍👩‍👧 🇫🇷 ❤️ ❤ ★ ☆ ♥ ✓ ™ ® © ° 5°C × ÷ ± µ Ω № § ¶ • · ● → ← ² ³ m² H₂O ª º ① Ⅷ ₤ ₹ ₩ ₿
a b 1 1/2 12 345 6789 a b a　b ab a­b x-ray­y a​b a‍b ﻿a b﻿ é e´ ̈a
""".strip("\n").split("\n")
SPECIAL = [
    "",
    " ",
    "a",
    ".",
    "\t",
    "\u00a0",
    "a\tb",
    " a  b ",
    "a\nb",
    "a\n\nb",
    "x" * 300,
    "a " * 50,
    "\u0000",
    "\ud7ff\ue000",
    "\ufffd",
]
PIECES = """a b dog cat the The U.S. Mr. mr Dr. No. no. it don't can't cannot gonna s t n I'm we're 1 2 12 3/4 1.5 1,000 100
555 1234 5 T-shirt red-and-white Smith's dogs' O'Brien AT&T r&b www.foo.com http://foo.com/bar a@b.com #tag @user $5 % 50%
5:30 10am 3rd 2010 '90s e.g. etc. p.m. a.m Ph.D. x-ray""".split()
MARKS = [
    *".,;:!?-'\"()[]{}/\\&*@#$%^+=_~`|<>",
    "--",
    "...",
    "''",
    "``",
    " - ",
    " ",
    "  ",
    "&amp;",
    "n't",
    "'s",
    "'ll",
]
ODD = [*"’‘“”–—…é中文😀½€£°™•ñ‐ʼ²", "\u00a0", "\u0301"]


def random_text(rng: random.Random) -> str:
    """Pieces of captions and marks thrown together."""
    text = ""
    for _ in range(rng.randint(1, 7)):
        pieces = rng.choices((PIECES, MARKS, ODD), (50, 40, 10))[0]
        text += rng.choice(pieces) + " " * (rng.random() < 0.35)
    return text.strip(" ")


def texts() -> list[str]:
    rng = random.Random(0)
    return [*TEXTS, *SPECIAL, *(random_text(rng) for _ in range(500))]


if __name__ == "__main__":
    wanted = texts()
    lines = [
        json.dumps([text, tokens]) for text, tokens in zip(wanted, java_ptb.tokenize(wanted), strict=True)
    ]
    GOLDEN.write_text("\n".join(lines) + "\n", encoding="ascii")
    print(f"{GOLDEN.name}: {len(lines)} texts")
