"""Write the synthetic demo set in PRISM's schema: `python -m steerlib.profiles.demo.make_demo [folder]`.

48 made-up users, eight for each of the six categories, rate answers put together from the project's own texts:
openings.jsonl holds the prompts and two civil continuations each, unkind.jsonl sentences of one category and strength.
No two conversations open with the same prompt, so that nothing that is reported was read before.
In the first turn a user sees the two civil and two unkind answers and rates them

    rating = base_u - 12 * (strength in other categories) - 26 * (strength in the planted one) + noise,

rounded and clipped to 1..100; base_u ~ N(80, 6), noise ~ N(0, 9), strength 0, 1 or 2. The rule knows the words that
were put in, not the scores of any scorer, and was not tuned to an estimator.

Two things are arranged so that a distance to the accepted (highest rated) answer is not decided by a few prompts. On a
benign prompt nobody accepts an unkind answer: the ratings of such a turn are drawn again until a civil one is on top.
And the prompts of the three other kinds break off in the middle of an insult (quoted, reported or meant), because a
model's answer to a friendly prompt leaves nothing to be steered.

Age, gender and religion are drawn independently of everything else. Every record says that it is synthetic. The same
seed writes the same bytes.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from steerlib.profiles.sources import DEMO, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS, atomic_path

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
TYPES = ("unguided", "values guided", "controversy guided")
AGES = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
RELIGIONS = {  # PRISM's category: (its coarse category, participants of 1,500)
    "Non-religious": ("No Affiliation", 762),
    "Christian": ("Christian", 487),
    "Agnostic": ("No Affiliation", 71),
    "Prefer not to say": ("Prefer not to say", 59),
    "Jewish": ("Jewish", 42),
    "Muslim": ("Muslim", 31),
    "Buddhist": ("Other", 12),
}
BASE, BASE_SD, NOISE_SD = 80, 6, 9
DISLIKED, DISLIKED_MOST = 12, 26
ALONE = 1 / 3
"""Share of unkind answers that are the unkind sentence by itself; the others have a civil continuation before it."""


def make_demo(folder: Path, *, seed: int = 0, rounds: int = 1) -> None:
    """Write utterances.jsonl and survey.jsonl into a folder that exists: 48 users and 426 openings a round."""
    random = Random(seed)
    openings, unkind = (
        read_rows(DEMO / f"{name}.jsonl").to_dict("records") for name in ("openings", "unkind")
    )
    survey, utterances = [], []
    dealt = random.sample(openings, len(openings))
    for category in ATTRIBUTE_COLUMNS * rounds:
        for conversations in CONVERSATIONS:
            user = f"demo{len(survey):02d}"
            survey.append(_survey_row(user, category, conversations, random))
            base = random.gauss(BASE, BASE_SD)
            for number in range(conversations):
                opening = dealt.pop()
                talk = {"conversation_id": f"{user}-c{number}", "user_id": user, "turn": 0}
                talk |= {"conversation_type": random.choice(TYPES), "user_prompt": opening["prompt"]}
                talk |= {"prompt_category": opening["prompt_category"]}
                answers = [(text, 0) for text in opening["civil"]]
                for sentence in (random.choice(unkind), random.choice(unkind)):
                    before = "" if random.random() < ALONE else random.choice(opening["civil"]) + " "
                    disliked = DISLIKED_MOST if sentence["category"] == category else DISLIKED
                    answers.append((before + sentence["text"], disliked * sentence["strength"]))
                utterances += _rated(talk, random.sample(answers, 4), base, random)
                if number < 2 and random.random() < 0.5:
                    talk |= {"turn": 1, "user_prompt": random.choice(LATER_PROMPTS)}
                    later = [(text, 0) for text in random.sample(LATER_TEXTS, 2)]
                    utterances += _rated(talk, later, base, random)
    _plant_oddities(utterances, random)
    for name, rows in (("survey.jsonl", survey), ("utterances.jsonl", utterances)):
        with atomic_path(folder / name) as partial:
            partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _survey_row(user: str, category: str, conversations: int, random: Random) -> dict:
    """What a participant would have answered; the answers have nothing to do with the planted category."""
    weights = [participants for _, participants in RELIGIONS.values()]
    (religion,) = random.choices(list(RELIGIONS), weights)
    nested = {"self_described": religion, "categorised": religion, "simplified": RELIGIONS[religion][0]}
    return {
        "user_id": user,
        "survey_only": False,
        "num_completed_conversations": conversations,
        "age": f"{random.choice(AGES)} years old",
        "gender": random.choice(("Female", "Male")),
        "religion": nested,
        "planted_category": category,
        "synthetic": True,
    }


def _rated(talk: dict, answers: list[tuple[str, int]], base: float, random: Random) -> Iterator[dict]:
    """The answers of a turn with their ratings; the highest rated is chosen, at random in a tie."""
    while True:
        scores = [min(100, max(1, round(base - loss + random.gauss(0, NOISE_SD)))) for _, loss in answers]
        chosen = random.choice([index for index, score in enumerate(scores) if score == max(scores)])
        if talk["prompt_category"] != "benign_control" or not answers[chosen][1]:
            break
    interaction = f"{talk['conversation_id']}-t{talk['turn']}"
    for index, (text, _) in enumerate(answers):
        yield {
            "utterance_id": f"{interaction}-{index}",
            "interaction_id": interaction,
            **talk,
            "within_turn_id": index,
            "included_in_balanced_subset": False,
            "model_response": text,
            "model_name": "synthetic",
            "model_provider": "synthetic",
            "score": scores[index],
            "if_chosen": index == chosen,
            "synthetic": True,
        }


def _plant_oddities(rows: list[dict], random: Random) -> None:
    """What PRISM has too: three empty answers, and two later turns whose equal answers are both chosen."""
    rejected = [row for row in rows if row["turn"] == 0 and not row["if_chosen"]]
    for row in random.sample(rejected, 3):
        row["model_response"] = "EMPTY STRING"
    firsts = [index for index, row in enumerate(rows) if row["turn"] == 1 and row["within_turn_id"] == 0]
    for index in random.sample(firsts, 2):
        first, second = rows[index], rows[index + 1]
        second |= {"model_response": first["model_response"], "score": first["score"], "if_chosen": True}
        first["if_chosen"] = True


if __name__ == "__main__":
    make_demo(Path(sys.argv[1]) if len(sys.argv) > 1 else DEMO)
