"""Small raw files in each data set's format."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from data.readers.options import ReadOptions

USERS = ["1::F::1::10::48067", "2::M::56::16::70072", "5::M::25::0::55117"]
MOVIES = [
    "10::Toy Story (1995)::Animation|Children's|Comedy",
    "7::Crying: Game, The (1992)::Drama",
    "8::Misérables, Les ::War|Western",
    "9::Seven (Se7en) (1995)::Crime|Thriller",
]
RATINGS = ["1::10::5::978300760", "5::9::1::978302109", "1::7::3::978301968", "2::10::4::0"]
MOVIELENS = {"users.dat": USERS, "movies.dat": MOVIES, "ratings.dat": RATINGS}

BOOKS = [
    ("0002005018", "Clara Callan", "Richard Bruce Wright", "2001", "HarperFlamingo & Co"),
    ("0449003787", '\\O\\" Is for Outlaw"', "SUE GRAFTON", "1999", "Ballantine; Books"),
    ("000000000X", "Ends in a backslash\\", "", "0", ""),
    ("0000000001", "Two\nlines", "Ärzte", "2001", "HarperFlamingo & Co"),
    ("0000000002", "", "Clara", "3020", "AT&T &lt;"),
]
BOOK_USERS = [
    ("8", "timmins, ontario, canada", "34"),
    ("9", "germantown, tennessee, USA", ""),
    ("10", "berlin, \\n/a\\, Germany", "24"),
    ("11", "atlantis, sea, nowhere", "40"),
    ("12", "new york, new york, usa", "50"),
    ("13", "porto, portugal", "111"),
    ("14", "paris, , united states", "5"),
]
BOOK_RATINGS = [
    ("12", "0449003787", "0"),
    ("8", "0002005018", "10"),
    ("9", "0002005018", "5"),
    ("8", "0000000001", "7"),
    ("11", "0000000001", "7"),
    ("8", "unknown", "7"),
    ("99", "0000000001", "7"),
    ("99", "unknown", "7"),
    ("10", "0000000001", "3"),
]

RELEASE_HEADER = "item_id,user_id,rating,timestamp,size,fit,user_attr,model_attr,category,brand,year,split"
REVIEWS = [
    ("7443", "Robyn", "4", "2010-01-21 08:00:00+00:00", "", "", "Small", "Small", "Dresses", "", "2012", "0"),
    ("7443", "carolyn.a", "3", "2010-01-27 08:00:00+00:00", "", "", "", "Small", "Dresses", "", "2012", "0"),
    ("7443", "Alex", "2", "2010-01-27 08:00:00+00:00", "", "", "Large", "Small", "Dresses", "", "2012", "0"),
    ("154797", "Bern", "5", "2019-06-26 21:15:13.165000+00:00", "6.0", "Just right", "Large", "Small&Large", "", "",
     "2017", "2"),
    ("71607", "", "5", "2019-06-26 22:00:00+00:00", "", "", "Small", "Small&Large", "Tops", "Jack, by BB", "2016", "1"),
    ("71607", 'O"Neil, amy', "3", "2019-06-27 15:45:06.250000+00:00", "4.0", "Slightly small", "Small", "Small&Large",
     "Tops", "Jack, by BB", "2016", "0"),
    ("7443", "Bern", "1", "2019-06-28 07:00:00+00:00", "", "", "Large", "Small", "Dresses", "", "2012", "2"),
    ("154797", "Robyn", "3", "2019-06-29 13:55:16.542000+00:00", "", "", "Small", "Small&Large", "", "", "2017", "2"),
]  # fmt: skip
# users and items as places among those kept with ratings of 3 and more, in sorted order
PREPARED_ROWS = [
    ("2", "0", REVIEWS[0][3]),
    ("0", "2", REVIEWS[3][3]),
    ("1", "1", REVIEWS[5][3]),
    ("2", "2", REVIEWS[7][3]),
]
PREPARED_USERS = [("2", "0"), ("0", "1"), ("1", "0")]


def options(folder: Path, **changes) -> ReadOptions:
    return ReadOptions(Path(folder), "hash", Path(folder) / "cache", **changes)


def movielens_bytes(changes: dict[str, list[str]] | None = None) -> dict[str, bytes]:
    files = MOVIELENS | (changes or {})
    return {f"ml-1m/{name}": "".join(f"{row}\n" for row in rows).encode("latin-1") for name, rows in files.items()}


def cleaned_bytes(books=BOOKS, users=BOOK_USERS, ratings=BOOK_RATINGS) -> dict[str, bytes]:
    tables = {
        "Books.csv": [("ISBN", "Title", "Author", "Year", "Publisher"), *books],
        "Users.csv": [("User-ID", "Location", "Age"), *users],
        "Ratings.csv": [("User-ID", "ISBN", "Rating"), *ratings],
    }
    files = {}
    for name, rows in tables.items():
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=";").writerows(rows)
        files[f"BookCrossing/{name}"] = text.getvalue().encode("utf-8")
    return files


def dump_bytes(books=BOOKS, users=BOOK_USERS, ratings=BOOK_RATINGS) -> dict[str, bytes]:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def entities(value: str) -> str:
        return value.replace("&", "&amp;")

    def lines(header: str, rows) -> bytes:
        names = [";".join(quoted(name) for name in header.split(";"))]
        return "".join(f"{row}\r\n" for row in [*names, *rows]).encode("latin-1")

    images = ";".join(quoted(f"http://images/{size}.jpg") for size in "SML")
    book_rows = [";".join(quoted(entities(value)) for value in book) + f";{images}" for book in books]
    user_rows = [f"{quoted(user)};{quoted(place)};{quoted(age) if age else 'NULL'}" for user, place, age in users]
    header = "ISBN;Book-Title;Book-Author;Year-Of-Publication;Publisher;Image-URL-S;Image-URL-M;Image-URL-L"
    return {
        "BookCrossing/BX-Books.csv": lines(header, book_rows),
        "BookCrossing/BX-Users.csv": lines("User-ID;Location;Age", user_rows),
        "BookCrossing/BX-Book-Ratings.csv": lines(
            "User-ID;ISBN;Book-Rating", [";".join(map(quoted, r)) for r in ratings]
        ),
    }


def release_bytes(reviews=REVIEWS) -> dict[str, bytes]:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([RELEASE_HEADER.split(","), *reviews])
    return {"modcloth/df_modcloth.csv": text.getvalue().encode()}


def prepared_bytes(rows=PREPARED_ROWS, users=PREPARED_USERS) -> dict[str, bytes]:
    tables = {
        "modcloth.csv": [("user_id", "item_id", "timestamp"), *rows],
        "user_attr.csv": [("user_id", "user_attr"), *users],
    }
    return {
        f"modcloth/{name}": "".join("\t".join(row) + "\n" for row in table).encode() for name, table in tables.items()
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder
