"""A text that two tokenizers are tried on: prose, numbers, mathematics, code, markup, and a dozen writings."""

SAMPLE_TEXT = """\
A train leaves the station at 9:40 in the morning and arrives at 13:05. How long does the journey take? First we count the
hours from nine to one, which are four, then take away the thirty-five minutes that are missing. The answer is therefore 3 hours
and 25 minutes. Nobody had told her that the old library, which stood between two rivers, would be closed for the whole winter;
nevertheless she walked there every evening, because the lights behind its windows had become a kind of company. "Don't worry,"
he said, "it's only the wind." They couldn't have known what we'll find tomorrow, I'm sure, and you've never asked.

Water boils at 100 °C (212 °F) and freezes at 0 °C. Sound travels at about 343 m/s, light at 299,792,458 m/s. In 2024 the
company earned $1,234.56 million, or 17.8% more than in 2023; its 48,000 employees worked in 31 countries.
Call +1 (555) 010-7788 or write to jane.doe@example.com before 07/15/2026.
See https://www.example.org/articles/index.html?id=42&lang=en#top for more.

Let f(x) = x^2 + 3x - 4. Then f'(x) = 2x + 3, so \\frac{a}{b} \\cdot \\sqrt{2} \\leq \\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}.
Therefore x \\in \\mathbb{R}, and $$\\int_0^1 e^{-t}\\,dt = 1 - 1/e \\approx 0.632.$$
**Step 1:** substitute. **Step 2:** simplify.
∀ε > 0 ∃δ > 0: |x - y| < δ ⇒ |f(x) - f(y)| < ε; π ≈ 3.14159, α + β ≠ γ, A ∪ B ⊆ C, x → ∞, ½ ± √2, a × b ÷ c.

```python
import os, sys
from collections import defaultdict

class Counter(defaultdict):
    def __init__(self, items=None):
        super().__init__(int)
        for i, item in enumerate(items or []):
            self[item] += 1
            if self[item] > 10 and i % 2 == 0:
                print(f"{item!r}: {self[item]:>5d}", file=sys.stderr)

    @staticmethod
    def load(path: str) -> "Counter":
        with open(os.path.join(path, "data.txt"), encoding="utf-8") as handle:
            return Counter(line.strip().lower() for line in handle if line != "")
```

```c
#include <stdio.h>
int main(int argc, char **argv) {
\tfor (int i = 0; i < argc; ++i) { printf("%d %s\\n", i, argv[i]); }
\treturn (argc > 1) ? 0 : -1; /* nothing else to do */
}
```

```javascript
export const sum = async (values) => { const total = values.reduce((a, b) => a + b, 0); return { total, ok: total >= 0 }; };
```

```sql
SELECT name, COUNT(*) AS n FROM users WHERE age BETWEEN 18 AND 65 GROUP BY name ORDER BY n DESC LIMIT 10;
```

{"id": 7, "name": "Ada", "tags": ["x", "y"], "nested": {"ok": true, "none": null, "score": -1.5e-3}}
<div class="note"><p>Hello, <b>world</b>!</p><br/></div>
| name | value |
|------|-------|
| a    | 1     |
- [ ] first   - [x] second   1. one   2. two   > quoted   ### Heading

Der Zug fährt morgens um zwanzig vor zehn ab und kommt kurz nach eins an; wie lange dauert die Fahrt? Größe, Straße, Mädchen.
Le train part à neuf heures quarante et arrive à treize heures cinq : combien de temps dure le voyage ?
Où est la forêt, là-bas ?
El tren sale por la mañana y llega después del mediodía. ¿Cuánto tiempo dura el viaje? ¡Qué sorpresa, señor!
Il treno parte alle nove e quaranta; perché non c'è più tempo? O comboio parte de manhã e não chega cedo.
Pociąg odjeżdża o świcie. Tren sabah dokuz kırkta kalkıyor.
Tåget går klockan tio. Vlak odjíždí ráno. Tàu khởi hành lúc chín giờ bốn mươi.
Поезд отправляется утром в девять часов сорок минут и прибывает днём. Сколько времени длится поездка?
Το τρένο φεύγει το πρωί και φτάνει το μεσημέρι. Πόση ώρα διαρκεί το ταξίδι;
火车上午九点四十分出发，下午一点零五分到达。这段旅程需要多长时间？答案是三小时二十五分钟。
列車は午前九時四十分に出発し、午後一時五分に到着します。どのくらいかかりますか。カタカナも少し。
기차는 오전 아홉 시 사십 분에 출발합니다. 여행은 얼마나 걸립니까?
يغادر القطار في الساعة التاسعة وأربعين دقيقة صباحا. كم تستغرق الرحلة؟
הרכבת יוצאת בבוקר ומגיעה בצהריים. कितना समय लगता है? रेलगाड़ी सुबह चलती है। รถไฟออกตอนเช้า
🚆 🙂 👍🏽 ✓ → “quoted” ‘single’ — dash – en… • bullet © ® ™ € £ ¥
"""
