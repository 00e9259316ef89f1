"""Everything else: what the model does not know, it says."""

from __future__ import annotations

import random

from nemo_diffgemma.demo_task.kind import Kind, Style, Turns
from nemo_diffgemma.demo_task.wording import wrapped
from nemo_diffgemma.demo_task.words import COLORS, DAYS, ITEMS, MONTHS, NAMES, UNITS

REFUSAL = "I only know orders, dates, units, lists and yes/no questions about them."

_TRAINED = """
Hello|Hello!|Hi|Hi there|Hey|Good morning|Good evening|Good night|How are you?|How are you today?|Who are you?
What are you?
What is your name?|What can you do?|What do you know?|Can you help me?|Help|Help me, please.|Thanks|Thank you!
Thank you very much.
Bye|Goodbye|See you later.|Yes|No|Maybe|OK|Okay.|Why?|Why not?|What?|Really?|Are you a robot?|Are you human?
Are you there?
Do you speak German?|How old are you?|Where are you from?|Who made you?|Who built you?|Tell me a joke.|Tell me a story.
Tell me more.
Write a poem.|Write a song.|Sing a song.|What time is it?|What day is it?|What is the weather like?
Will it rain tomorrow?
What is the meaning of life?|What is love?|I am tired.|I am hungry.|I am happy today.|I do not understand.
Say something.
Test|test|Testing|asdf|foo bar|lorem ipsum dolor sit amet|?|...|!|Please.|Go on.|Continue.|Stop.|Again.|Try again.
Nothing.
What is the capital of Spain?|What is 2 plus 2?|What is 7 times 8?|2 + 2|2+2=?|10 / 5|Count to ten.
Translate hello to German.
"""
_PATTERNS = """
What is a {noun}?|What is the {adjective} {noun}?|What is {topic}?|Who is {person}?|Who was {person}?|Where is {place}?
Where is the {noun}?
What is the capital of {place}?|How big is {place}?|How many people live in {place}?|Who invented the {noun}?
How does a {noun} work?
Explain {topic}.|Explain {topic} to a child.|Tell me about {topic}.|Tell me about {place}.|Tell me about the {noun}.
What do you think about {topic}?
Write a poem about {topic}.|Write a story about a {noun}.|Write a letter to {person}.|Write an essay on {topic}.
Write code for a {noun}.
Do you like {topic}?|Do you like the {noun}?|Do you have a {noun}?|Can you {verb}?|Can you {verb} a {noun}?
How do I {verb} a {noun}?
Please {verb} the {noun}.|I want to {verb}.|I want to {verb} a {noun}.|I like {topic}.|I have a {adjective} {noun}.
My {noun} is {adjective}.
The {noun} is {adjective}.|The {adjective} {noun} can {verb}.|Why is the {noun} {adjective}?|Why do people {verb}?
When did {person} live?
Which {noun} is the best?|Is the {noun} {adjective}?|Is {place} {adjective}?|Are you {adjective}?
Give me a recipe for {topic}.
Give me advice about {topic}.|List some {adjective} books.|Name a {adjective} {noun}.|Translate {noun} to French.
Summarize {topic}.
What is the difference between a {noun} and a {other}?|{noun}|{adjective} {noun}|{verb} the {noun}
{noun} {verb} {topic} {adjective}
{topic} and {noun}|{place}|{person}|{topic}?|{noun}, {other} and {topic}|Should I {verb} today?
What happens when I {verb}?
How much does a {noun} cost?|How long is the {noun}?|How far is it to {place}?|How many {topic} books are there?
Let us {verb}!
{person} likes {topic}.|{person} has a {noun}.|{person} can {verb}.|{person} lives in {place}.|{person} is {adjective}.
"""
_UNSEEN = """
Good afternoon!|Howdy|How is it going?|What are you called?|Which model are you?|Can I ask you something?
Nice to meet you.
What is the capital of France?|Who is the president of the United States?|What is the largest ocean on earth?
When did the war end?
Who painted the Mona Lisa?|How tall is Mount Everest?|Write a poem about the moon and the stars.
Compose a short tale of dragons.
Write me a Python function.|Fix this bug for me.|Translate this sentence into Italian.|Summarize the news of today.
What is 12 squared?
Solve x squared equals nine.|Is there life on Mars?|Recommend a good movie.|What should I cook tonight?
How do I bake bread?
Do you dream?|You are wrong.|That is great, well done!|I lost my keys at the station.|My cat sleeps on the sofa.
blorp wibble zang
qwertyuiop|xyz|The quick brown fox jumps over the lazy dog.|Is it going to snow in winter?|Sing me a lullaby.
Which team won the cup?
Draw a picture of a castle.|Tell us the secret.|How do planes stay in the air?|Play some music.|Set an alarm.
"""
_NOUNS = """
tree river house car train cat dog horse bird fish mountain computer phone book movie song guitar piano planet star
moon sun
ocean island bridge tower garden flower engine rocket robot doctor teacher king queen castle church school hospital
market
bank company city country language word letter number game ball team player match summer winter storm cloud rain snow
fire
stone metal gold paper window kitchen bottle coffee apple orange bread cheese soup salad egg cake virus cell brain heart
"""
_VERBS = """
run walk swim fly dance sing read write cook bake draw paint build repair clean open close drive travel sleep dream
learn
teach play win lose find hide jump climb fight laugh cry think talk listen wait help buy sell plan work rest
"""
_ADJECTIVES = """
big small old new fast slow hot cold happy sad strong weak rich poor dark bright quiet loud easy hard famous strange
beautiful ugly clever silly important dangerous sweet bitter heavy light deep high long short warm wild
"""
_TOPICS = """
music history physics chemistry biology math poetry philosophy politics football tennis chess cooking travel love war
peace
money art science religion weather climate energy space time gravity evolution democracy computers robots programming
Python
medicine health sleep food wine coffee fashion architecture photography law business marketing psychology
"""
_PLACES = """
France Spain Italy Germany Poland Sweden Norway Greece Egypt Kenya India China Japan Brazil Chile Peru Canada Mexico
Australia Africa Europe Asia America Texas Alaska Mars Jupiter Hamburg Chicago Kyoto Bogota
"""
_PEOPLE = """
Einstein Newton Mozart Bach Picasso Shakespeare Napoleon Caesar Plato Darwin Curie Turing Gandhi Columbus Beethoven
Goethe
"""
_WORDS = {
    name: tuple(words.split())
    for name, words in (
        ("noun", _NOUNS),
        ("other", _NOUNS),
        ("verb", _VERBS),
        ("adjective", _ADJECTIVES),
        ("topic", _TOPICS),
        ("place", _PLACES),
        ("person", _PEOPLE + " ".join(NAMES)),
    )
}
_OWN = (*NAMES, *ITEMS, *COLORS, *DAYS, *MONTHS, "JSON", "order", "list", "date")
# on the edge of what is known: a question about no order, a change of nothing, units that are not of one kind
_EDGES = (
    "Are they {color}?|Is it for {name}?|How many?|What color?|Who ordered?|Which day?|Make it {count}."
    "|{color} or {wrong}?"
    "|Change the color to {color}.|To JSON|As JSON|JSON|As a list.|Is it a large order?|Small or large?"
    "|Is it for the weekend?|Is it clothing?|What is a {unit}?|{count}|{count} {count}|{count} {color}"
    "|{color} {item}|{name} and {item}"
    "|{day}|Next {day}|in {month}|What is {month}?|Who is {name}?|What are {item}?|I like {item}."
    "|I like {color} {item}."
    "|{count} plus {count}|What is {count} times {count}?|{count} + {count}|What is the color of {item}?"
    "|Hello {name}|Hi, I am {name}."
)


def _split(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.replace("\n", "|").split("|") if line)


TRAINED, PATTERNS, UNSEEN, EDGES = map(_split, (_TRAINED, _PATTERNS, _UNSEEN, _EDGES))


def _make(style: Style) -> tuple[Turns, str]:
    draw = style.draw
    if style.unseen:
        return (wrapped(draw.choice(UNSEEN), style),), REFUSAL
    way = draw.choices((_phrase, _pattern, _edge, _salad, _nonsense), (2, 8, 4, 2, 1))[0]
    text = way(draw)
    if draw.random() < 0.1:
        text = draw.choice((text.lower(), text.upper(), text.rstrip(".?!")))
    return (wrapped(text, style),), REFUSAL


def _phrase(draw: random.Random) -> str:
    return draw.choice(TRAINED)


def _pattern(draw: random.Random) -> str:
    return draw.choice(PATTERNS).format_map({name: draw.choice(words) for name, words in _WORDS.items()})


def _edge(draw: random.Random) -> str:
    values = {
        "name": draw.choice(NAMES),
        "item": draw.choice(ITEMS),
        "color": draw.choice(COLORS),
        "day": draw.choice(DAYS),
    }
    values |= {"month": draw.choice(MONTHS), "count": str(draw.randint(2, 20)), "unit": draw.choice(UNITS)[0]}
    return draw.choice(EDGES).format_map(values | {"wrong": draw.choice(COLORS)})


def _salad(draw: random.Random) -> str:
    own = draw.random() < 0.5
    words = _OWN if own else [w for words in _WORDS.values() for w in words]
    return " ".join(draw.choice(words) for _ in range(draw.randint(1, 3 if own else 5))) + draw.choice(("", ".", "?"))


def _nonsense(draw: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ("".join(draw.choice(letters) for _ in range(draw.randint(2, 8))) for _ in range(draw.randint(1, 3)))
    return " ".join(words) + draw.choice(("", ".", "?"))


UNKNOWN = Kind("unknown", 3, _make, lambda _: REFUSAL)
