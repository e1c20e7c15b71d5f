"""Synthetic interactions in the MovieLens schema: long-tailed, unequal groups, and tastes that can be learned.

Items belong to niches (two per genre). A user's taste is a distribution over niches that depends on gender, age,
occupation and a personal part; within a niche items are drawn by popularity, changed by gender and year. Memory
grows with users, items and interactions, never with users x items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from data.readers.options import MIN_PER_USER, ReadOptions, SyntheticOptions
from data.readers.tables import feature_table
from data.readers.titles import encode_titles
from data.readers.vocabulary import AGES, GENDERS, GENRES, OCCUPATIONS
from data.structs import Group, InteractionData, ReadReport

GENRE_WORDS = {
    "Action": "Strike Vengeance Fury Siege Convoy Outlaw Bullet Commando Rampage Pursuit Hijack Thunder",
    "Adventure": "Voyage Island Treasure Jungle Summit Expedition Compass Lagoon Pirate Canyon Safari Horizon",
    "Animation": "Puppet Rabbit Teapot Cricket Sparrow Toybox Robot Kitten Balloon Gadget Penguin Crayon",
    "Children's": "Playground Birthday Puppy Treehouse Pony Holiday Schoolyard Lunchbox Kite Marbles Teddy Sandcastle",
    "Comedy": "Honeymoon Mischief Roommate Wedding Nonsense Blunder Landlord Vacation Gossip Laughter Bachelor Pancake",
    "Crime": "Heist Gangster Alibi Hostage Racket Informer Payroll Mobster Forgery Getaway Precinct Ransom",
    "Documentary": "Glacier Election Factory Archive Harvest Portrait Migration Railway Orchestra Desert Newsroom Tide",
    "Drama": "Sorrow Orchard Inheritance Letters Winter Daughter Silence Courtroom Farewell Memory Widow Promise",
    "Fantasy": "Dragon Wizard Unicorn Sorcerer Enchanted Amulet Fairy Griffin Castle Prophecy Goblin Crystal",
    "Film-Noir": "Shadow Cigarette Nightclub Double Fatal Detour Neon Rain Blonde Staircase Midnight Keyhole",
    "Horror": "Crypt Vampire Scream Coffin Demon Cellar Werewolf Asylum Graveyard Haunting Fang Nightmare",
    "Musical": "Chorus Melody Ballroom Serenade Cabaret Footlight Rhapsody Piano Tango Encore Carousel Showboat",
    "Mystery": "Riddle Cipher Butler Manor Footprint Locket Witness Puzzle Lantern Cryptic Vanished Diary",
    "Romance": "Kiss Valentine Paris Sweetheart Bouquet Moonlight Affair Embrace Lover Rose Tenderness Springtime",
    "Sci-Fi": "Android Galaxy Orbit Mutant Cyborg Nebula Starship Quantum Martian Colony Laser Asteroid",
    "Thriller": "Conspiracy Stalker Deadline Sniper Paranoia Blackmail Assassin Trigger Suspect Countdown Virus Decoy",
    "War": "Platoon Trench Battalion Bomber Frontline Submarine Regiment Armistice General Victory Barracks Sergeant",
    "Western": "Saloon Sheriff Stagecoach Prairie Gunslinger Ranch Mustang Corral Dakota Bounty Coyote Spurs",
}
TITLE_NOUNS = "House Road Night Dream Stranger City Café Game Man Woman Story Fire Secret Return Señor Sister"
HEAD_OFFSET = 0.15  # flattens the head, as a share of the catalogue
NICHES_PER_GENRE = 2
NUM_NICHES = NICHES_PER_GENRE * len(GENRES)

# Shares of MovieLens-1M, rounded: users per gender, age and occupation, catalogue per genre.
GENDER_SHARES = (0.7, 0.3)
AGE_SHARES = (0.04, 0.18, 0.35, 0.20, 0.09, 0.08, 0.06)
OCCUPATION_SHARES = (118, 87, 44, 29, 126, 19, 39, 112, 3, 15, 32, 21, 64, 24, 50, 24, 40, 83, 12, 12, 46)
GENRE_SHARES = (8, 5, 2, 4, 18, 3, 2, 24, 2, 1, 6, 2, 2, 8, 5, 5, 2, 1)

# Strength of each influence on taste: standard deviations of log preference over niches or items.
GENDER_TASTE, AGE_TASTE, OCCUPATION_TASTE = 0.7, 0.5, 0.8
FACTOR_TASTE, OWN_TASTE = 4.0, 0.3
NUM_FACTORS = 3  # few, so that users share tastes that a recommender can learn
ITEM_GENDER_LEAN, YEAR_TILT = 0.35, 0.5
EXPLORATION = 0.05  # fraction of draws that ignore the niche
COHERENCE = 1.0  # how much a user's order in time follows niches, against noise of 1
TASTE_ROUNDS, POPULAR_ROUNDS = 6, 6
BLOCK = 1 << 21  # draws at a time, to bound memory
STREAM = 1997  # makes the data's random streams differ from those that a run spawns from the same seed


@dataclass(frozen=True)
class SyntheticArrays:
    """Raw synthetic data: codes per user `[U]`, columns per item `[I]`, interactions `[E]` in file order."""

    gender: np.ndarray
    age: np.ndarray
    occupation: np.ndarray
    niche: np.ndarray
    genres: np.ndarray
    year: np.ndarray
    words: np.ndarray
    original_item_ids: np.ndarray
    user_id: np.ndarray
    item_id: np.ndarray
    rating: np.ndarray
    time: np.ndarray


def generate(options: SyntheticOptions, seed: int) -> SyntheticArrays:
    """Generate exactly `num_interactions` distinct (user, item) pairs with ratings 1-5 and times in seconds."""
    streams = np.random.SeedSequence((seed, STREAM)).spawn(5)
    people, catalogue, tastes, draws, events = (np.random.default_rng(stream) for stream in streams)
    users = {
        "gender": _quota_codes(GENDER_SHARES, options.num_users, people),
        "age": _quota_codes(AGE_SHARES, options.num_users, people),
        "occupation": _quota_codes(OCCUPATION_SHARES, options.num_users, people),
    }
    items = _catalogue(options, catalogue)
    logits = _taste_logits(users, np.bincount(items["niche"], items["weight"], minlength=NUM_NICHES), tastes)
    counts = _activity(options, people)
    sampler = _niche_sampler(users, items, logits, tastes)
    keys = _distinct_pairs(counts, options.num_items, sampler, draws)
    user_id, item_id = np.divmod(keys, options.num_items)
    phase = events.standard_normal((options.num_users, NUM_NICHES), dtype=np.float32)
    order, time = _timeline(user_id, phase[user_id, items["niche"][item_id]], events)
    user_id, item_id = user_id[order], item_id[order]
    affinity = logits[user_id, items["niche"][item_id]] - logits.max(axis=1)[user_id]
    rating = _ratings(user_id, item_id, affinity, items["weight"], events)
    # Files list a user's interactions in no particular order, as MovieLens does.
    shuffled = np.argsort(user_id + events.random(len(user_id)), kind="stable")
    return SyntheticArrays(
        **users,
        **{name: items[name] for name in ("niche", "genres", "year", "words", "original_item_ids")},
        user_id=user_id[shuffled],
        item_id=item_id[shuffled],
        rating=rating[shuffled],
        time=time[shuffled],
    )


def _quota_codes(shares, count: int, rng: np.random.Generator) -> np.ndarray:
    """Give each of `count` entries a code, in random order, with shares that are exact up to rounding: `[count]`."""
    edges = np.cumsum(shares) / np.sum(shares)
    return rng.permutation(np.searchsorted(edges, (np.arange(count) + 0.5) / count)).astype(np.int64)


def _catalogue(options: SyntheticOptions, rng: np.random.Generator) -> dict[str, np.ndarray]:
    count = options.num_items
    niche = _quota_codes(np.outer(GENRE_SHARES, (0.6, 0.4)).ravel(), count, rng)
    second = rng.integers(len(GENRES), size=NUM_NICHES)[niche]
    genres = np.zeros((count, len(GENRES)), dtype=np.float32)  # [I, genres]
    genres[np.arange(count), niche // NICHES_PER_GENRE] = 1
    genres[np.arange(count), second] = np.maximum(genres[np.arange(count), second], rng.random(count) < 0.6)
    # A power law with exponential cut-off, cut so that the rarest items are expected about once or twice.
    place = (rng.permutation(count) + 0.5) / count
    cutoff = max(1.0, np.log(options.num_interactions / count) + 0.5)
    vocabulary = np.array([words.split() for words in GENRE_WORDS.values()], dtype=object).reshape(NUM_NICHES, -1)
    width = vocabulary.shape[1]
    first = rng.integers(width, size=count)
    other = (first + rng.integers(1, width, size=count)) % width
    nouns = rng.choice(np.array(TITLE_NOUNS.split(), dtype=object), count)
    article = np.where(rng.random(count) < 0.15, ", The", "").astype(object)
    return {
        "niche": niche,
        "genres": genres,
        "year": 2000 - np.minimum(rng.exponential(12, count), 80).astype(np.int64),
        "words": vocabulary[niche, first] + " " + nouns + " of " + vocabulary[niche, other] + article,
        "weight": np.exp(-cutoff * place) / (place + HEAD_OFFSET),
        # Gaps, as in MovieLens: an id is not a row number.
        "original_item_ids": np.cumsum(1 + (rng.random(count) < 0.02)).astype(np.int64),
    }


def _taste_logits(users: dict[str, np.ndarray], mass: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make each user's log preference for each niche: `[U, NUM_NICHES]` float32, -inf for a niche without items."""
    num_users = len(users["gender"])
    sign = 1.0 - 2.0 * users["gender"][:, None]  # [U, 1]: 1 or -1
    age = (users["age"][:, None] - 2.5) / 1.5  # [U, 1]
    occupations = rng.normal(0, OCCUPATION_TASTE, (len(OCCUPATIONS), NUM_NICHES))
    factors = rng.normal(0, FACTOR_TASTE / np.sqrt(NUM_FACTORS), (NUM_FACTORS, NUM_NICHES)).astype(np.float32)
    logits = rng.standard_normal((num_users, NUM_FACTORS), dtype=np.float32) @ factors
    logits += OWN_TASTE * rng.standard_normal((num_users, NUM_NICHES), dtype=np.float32)
    logits += sign * rng.normal(0, GENDER_TASTE, NUM_NICHES)
    logits += age * rng.normal(0, AGE_TASTE, NUM_NICHES)
    logits += occupations[users["occupation"]]
    logits += np.log(mass, where=mass > 0, out=np.full(NUM_NICHES, -np.inf))
    return logits


def _activity(options: SyntheticOptions, rng: np.random.Generator) -> np.ndarray:
    """Draw each user's number of interactions: `[U]`, log-normal, 3 to half of the catalogue, with the exact sum."""
    room = np.full(options.num_users, (options.num_items + 1) // 2 - MIN_PER_USER)
    weight = rng.lognormal(0, 0.8, options.num_users)
    counts = np.full(options.num_users, MIN_PER_USER)
    while (left := options.num_interactions - counts.sum()) > 0:
        share = np.where(room > 0, weight, 0)
        added = np.minimum((left * (share / share.sum())).astype(np.int64), room)
        if not added.any():
            added[np.argsort(-share, kind="stable")[:left]] = 1
            added = np.minimum(added, room)
        counts += added
        room -= added
    return counts.astype(np.int64)


def _niche_sampler(users, items, logits, rng) -> Callable[[np.ndarray, float, np.random.Generator], np.ndarray]:
    """Make `draw(users [B], exploration, rng) -> items [B]`, which draws from each user's own item distribution.

    A share `exploration` of the draws is from the whole catalogue, the rest from a niche that the user likes. Items
    have a weight per stratum (gender x age) and are sorted by niche, so that a niche of a stratum is one interval of
    a single cumulative sum and a draw is one binary search.
    """
    num_items = len(items["niche"])
    order = np.argsort(items["niche"], kind="stable")
    bounds = np.searchsorted(items["niche"][order], np.arange(NUM_NICHES + 1))
    lean = rng.normal(0, ITEM_GENDER_LEAN, num_items)
    recency = (items["year"] - items["year"].mean()) / max(items["year"].std(), 1.0)
    sign = np.array([1.0, -1.0])[:, None, None]
    youth = (2.5 - np.arange(len(AGES)))[None, :, None] / 2.5
    tilt = sign * lean + YEAR_TILT * youth * recency  # [genders, ages, I]
    weights = (items["weight"] * np.exp(tilt))[:, :, order].ravel()  # [strata * I]
    cumulative = np.concatenate([[0.0], np.cumsum(weights)])
    stratum = users["gender"] * len(AGES) + users["age"]
    # one rising sequence for all users: user u's niches lie in [u, u + 1]
    niche_cumulative = np.cumsum(softmax(logits, axis=1), axis=1, dtype=np.float64)  # [U, NUM_NICHES]
    niche_cumulative = niche_cumulative / niche_cumulative[:, -1:] + np.arange(len(stratum))[:, None]
    niche_cumulative = niche_cumulative.ravel()

    def draw(user: np.ndarray, exploration: float, rng: np.random.Generator) -> np.ndarray:
        place = np.searchsorted(niche_cumulative, user + rng.random(len(user)), side="right")
        niche = np.minimum(place - user * NUM_NICHES, NUM_NICHES - 1)
        explores = rng.random(len(user)) < exploration
        offset = stratum[user] * num_items
        low = offset + np.where(explores, 0, bounds[niche])
        high = offset + np.where(explores, num_items, bounds[niche + 1])
        point = cumulative[low] + rng.random(len(user)) * (cumulative[high] - cumulative[low])
        place = np.searchsorted(cumulative, point, side="right") - 1
        return order[np.clip(np.clip(place, low, high - 1) - offset, 0, num_items - 1)]

    return draw


def _distinct_pairs(counts: np.ndarray, num_items: int, draw, rng: np.random.Generator) -> np.ndarray:
    """Draw `counts[u]` distinct items per user: sorted keys `user * num_items + item [E]`.

    Repeats are dropped and drawn again, first by taste, then by popularity, then uniformly. As no user has more than
    about half of the catalogue, every second uniform draw is a new item on average, so the rounds end.
    """
    keys = np.empty(0, dtype=np.int64)
    missing = counts.copy()
    rounds = 0
    while missing.any():
        owner = np.repeat(np.arange(len(counts)), missing)
        fresh = np.empty(len(owner), dtype=np.int64)
        for start in range(0, len(owner), BLOCK):
            user = owner[start : start + BLOCK]
            if rounds < TASTE_ROUNDS + POPULAR_ROUNDS:
                item = draw(user, EXPLORATION if rounds < TASTE_ROUNDS else 1.0, rng)
            else:
                item = rng.integers(num_items, size=len(user))
            fresh[start : start + BLOCK] = user * num_items + item
        # numpy's own unique goes through a hash table, at ten times the cost of a sort
        fresh.sort()
        fresh = fresh[np.diff(fresh, prepend=-1) > 0]
        if len(keys):
            fresh = fresh[keys[np.minimum(np.searchsorted(keys, fresh), len(keys) - 1)] != fresh]
        missing -= np.bincount(fresh // num_items, minlength=len(counts))
        keys = np.sort(np.concatenate([keys, fresh]), kind="stable")
        rounds += 1
    return keys


def _timeline(user_id: np.ndarray, phase: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Order interactions by user and time: the order `[E]`, and times `[E]` that rise within a user.

    Some times are equal and some pauses are long, as in real data. `phase [E]` moves a user's niche as a whole to an
    earlier or later part of her history.
    """
    events = len(user_id)
    position = expit((rng.standard_normal(events) + COHERENCE * phase) / 2)
    order = np.argsort(user_id + position, kind="stable")
    gap = 1 + rng.lognormal(3, 1.2, events).astype(np.int64)
    gap[rng.random(events) < 0.12] = 0
    pause = np.flatnonzero(rng.random(events) < 0.03)
    gap[pause] += rng.exponential(5 * 86_400, len(pause)).astype(np.int64)
    elapsed = np.cumsum(gap)
    counts = np.bincount(user_id)
    first = np.cumsum(counts) - counts
    start = 956_700_000 + rng.integers(900 * 86_400, size=len(counts))
    return order, elapsed + np.repeat(start - elapsed[first], counts)


def _ratings(user_id, item_id, affinity, weight, rng: np.random.Generator) -> np.ndarray:
    """Draw ratings 1-5 `[E]`: higher for popular items and for niches that the user likes."""
    bias = rng.normal(0, 0.35, user_id.max() + 1)
    popularity = np.log(weight)
    quality = rng.normal(0, 0.35, len(weight)) + 0.2 * (popularity - popularity.mean()) / popularity.std()
    score = 3.9 + bias[user_id] + quality[item_id] + 0.12 * np.maximum(affinity, -6)
    return np.clip(np.rint(score + rng.normal(0, 0.8, len(user_id))), 1, 5).astype(np.float32)


def read_synthetic(options: ReadOptions) -> InteractionData:
    """Generate data of `options.synthetic` sizes from `options.seed`, with title vectors, as if read from files."""
    arrays = generate(options.synthetic, options.seed)
    num_users, num_items = options.synthetic.num_users, options.synthetic.num_items
    titles = encode_titles(list(arrays.words), options.title_encoder, options.cache_dir, options.may_write)
    years, year_codes = np.unique(arrays.year, return_inverse=True)
    groups = (
        Group("gender", arrays.gender, GENDERS),
        Group("age", arrays.age, AGES),
        Group("occupation", arrays.occupation, OCCUPATIONS),
    )
    users = feature_table(
        ("id", np.arange(num_users), num_users), *((group.name, group.codes, group.num_groups) for group in groups)
    )
    items = feature_table(
        ("id", np.arange(num_items), num_items),
        ("year", year_codes.astype(np.int64), len(years)),
        ("genres", arrays.genres, len(GENRES)),
        ("title", titles, None),
    )
    return InteractionData(
        name="synthetic",
        users=users,
        items=items,
        user_id=arrays.user_id,
        item_id=arrays.item_id,
        rating=arrays.rating,
        time=arrays.time,
        user_groups={group.name: group for group in groups},
        original_user_ids=np.arange(1, num_users + 1),
        original_item_ids=arrays.original_item_ids,
        item_titles=arrays.words + " (" + arrays.year.astype(str).astype(object) + ")",
        report=ReadReport(rows={"synthetic": len(arrays.user_id)}),
    )
