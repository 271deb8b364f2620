"""Write the synthetic demo set in PRISM's schema: `python -m steerlib.profiles.demo.make_demo [folder]`.

48 made-up users, eight for each of the six categories, rate answers put together from the project's own
texts: openings.jsonl holds the prompts and civil continuations, unkind.jsonl sentences of one category and
strength. In the first turn a user sees two civil and two unkind answers and rates them

    rating = base_u - 12 * (strength in other categories) - 26 * (strength in the planted one) + noise,

rounded and clipped to 1..100; base_u ~ N(80, 6), noise ~ N(0, 9), strength 0, 1 or 2. The rule knows the
words that were put in, not the scores of any scorer, and was not tuned to an estimator. Age, gender and religion
are drawn independently of everything else. Every record says that it is synthetic. The same seed writes the same bytes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from steerlib.tables import ATTRIBUTE_COLUMNS, atomic_path

HERE = Path(__file__).parent
CONVERSATIONS = (4, 6, 8, 9, 11, 11, 11, 11)
LATER_PROMPTS = ("Go on.", "And then?", "Tell it again, more calmly.", "What happened next?")
LATER_TEXTS = (
    "Then everybody went home, and the evening was quiet.",
    "After that they sat down and talked it over.",
    "The next morning it looked less serious than before.",
    "Nobody knew, but they agreed to ask again tomorrow.",
    "It took some time, and in the end it was settled.",
    "He thought about it for a while and nodded.",
)
CONVERSATION_TYPES = ("unguided", "values guided", "controversy guided")
AGES = tuple(f"{span} years old" for span in ("18-24", "25-34", "35-44", "45-54", "55-64", "65+"))
GENDERS = ("Female", "Male")
RELIGIONS = {  # PRISM's category: (its coarse category, participants of 1,500)
    "Non-religious": ("No Affiliation", 762),
    "Christian": ("Christian", 487),
    "Agnostic": ("No Affiliation", 71),
    "Prefer not to say": ("Prefer not to say", 59),
    "Jewish": ("Jewish", 42),
    "Muslim": ("Muslim", 31),
    "Buddhist": ("Other", 12),
}
BASE, BASE_SD = 80, 6
NOISE_SD = 9
DISLIKED, DISLIKED_MOST = 12, 26
ALONE = 1 / 3


def make_demo(folder: Path, *, seed: int = 0) -> None:
    """Write utterances.jsonl and survey.jsonl.

    Args:
        folder: where to; must exist.
        seed: of the random choices.
    """
    random = Random(seed)
    beliefs = Random(f"religion {seed}")  # a stream of its own, so that it moves no other choice
    survey, utterances = [], []
    for category in ATTRIBUTE_COLUMNS:
        openings = lines("openings.jsonl")
        random.shuffle(openings)  # a prompt is dealt once among the users of a category
        for conversations in CONVERSATIONS:
            user = f"demo{len(survey):02d}"
            row = _survey_row(user, category, conversations, random)
            survey.append(row | {"religion": _religion(beliefs)})
            mine = [openings.pop() for _ in range(conversations)]
            utterances += _user_rows(user, category, mine, random)
    _plant_oddities(utterances, random)
    for name, rows in (("survey.jsonl", survey), ("utterances.jsonl", utterances)):
        with atomic_path(folder / name) as partial:
            partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def lines(name: str) -> list[dict]:
    """Records of a file of this folder, for instance "unkind.jsonl"."""
    return [json.loads(line) for line in (HERE / name).read_text("utf-8").splitlines()]


def _survey_row(user: str, category: str, conversations: int, random: Random) -> dict:
    """What a participant would have answered; the answers have nothing to do with the planted category."""
    return {
        "user_id": user,
        "survey_only": False,
        "num_completed_conversations": conversations,
        "age": random.choice(AGES),
        "gender": random.choice(GENDERS),
        "planted_category": category,
        "synthetic": True,
    }


def _religion(random: Random) -> dict[str, str]:
    """Nested as in PRISM's survey, and about as frequent as there."""
    weights = [participants for _, participants in RELIGIONS.values()]
    (category,) = random.choices(list(RELIGIONS), weights)
    return {"self_described": category, "categorised": category, "simplified": RELIGIONS[category][0]}


def _user_rows(user: str, planted: str, openings: list[dict], random: Random) -> Iterator[dict]:
    unkind = lines("unkind.jsonl")
    base = random.gauss(BASE, BASE_SD)
    for number, opening in enumerate(openings):
        shared = {
            "conversation_id": f"{user}-c{number}",
            "user_id": user,
            "conversation_type": random.choice(CONVERSATION_TYPES),
            "prompt_category": opening["prompt_category"],
        }
        first = [(text, {}) for text in opening["civil"]]
        first += [_unkind_answer(opening["civil"], random.choice(unkind), random) for _ in range(2)]
        random.shuffle(first)
        yield from _turn_rows(shared, 0, opening["prompt"], first, (base, planted), random)
        if number < 2 and random.random() < 0.5:
            later = [(text, {}) for text in random.sample(LATER_TEXTS, 2)]
            yield from _turn_rows(shared, 1, random.choice(LATER_PROMPTS), later, (base, planted), random)


def _unkind_answer(civil: list[str], unkind: dict, random: Random) -> tuple[str, dict[str, int]]:
    """An unkind sentence, two times in three after a civil continuation; and what is in it."""
    text = unkind["text"] if random.random() < ALONE else f"{random.choice(civil)} {unkind['text']}"
    return text, {unkind["category"]: unkind["strength"]}


def _turn_rows(
    shared: dict, turn: int, prompt: str, answers: list, rater: tuple[float, str], random: Random
) -> Iterator[dict]:
    """The rated answers of one turn; the highest rated is chosen, at random in a tie."""
    base, planted = rater
    scores = []
    for _, strength in answers:
        others = sum(value for category, value in strength.items() if category != planted)
        liking = base - DISLIKED * others - DISLIKED_MOST * strength.get(planted, 0)
        liking += random.gauss(0, NOISE_SD)
        scores.append(min(100, max(1, round(liking))))
    chosen = random.choice([index for index, score in enumerate(scores) if score == max(scores)])
    for index, (text, _) in enumerate(answers):
        yield {
            "utterance_id": f"{shared['conversation_id']}-t{turn}-{index}",
            "interaction_id": f"{shared['conversation_id']}-t{turn}",
            "conversation_id": shared["conversation_id"],
            "user_id": shared["user_id"],
            "turn": turn,
            "within_turn_id": index,
            "included_in_balanced_subset": False,
            "conversation_type": shared["conversation_type"],
            "user_prompt": prompt,
            "model_response": text,
            "model_name": "synthetic",
            "model_provider": "synthetic",
            "score": scores[index],
            "if_chosen": index == chosen,
            "prompt_category": shared["prompt_category"],
            "synthetic": True,
        }


def _plant_oddities(rows: list[dict], random: Random) -> None:
    """What PRISM has too: three empty answers, and two later turns whose equal answers are both chosen."""
    rejected = [row for row in rows if row["turn"] == 0 and not row["if_chosen"]]
    for row in random.sample(rejected, 3):
        row["model_response"] = "EMPTY STRING"
    chosen = [index for index, row in enumerate(rows) if row["turn"] == 1 and row["within_turn_id"] == 0]
    for index in random.sample(chosen, 2):
        first, second = rows[index], rows[index + 1]
        second |= {"model_response": first["model_response"], "score": first["score"], "if_chosen": True}
        first["if_chosen"] = True


if __name__ == "__main__":
    make_demo(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
