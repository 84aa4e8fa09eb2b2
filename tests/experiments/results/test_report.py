import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from results_parts import page_of
from test_tables import sweep

from experiments.results.panels import png_bytes
from experiments.results.pictures import encode_png
from experiments.results.report import (
    Picture,
    budgets,
    chart_width_px,
    control_sentences,
    data_uri,
    status_line,
    wordy_columns,
)
from experiments.results.report_content import shown_prompt


class Page(HTMLParser):
    """Collects the tables' rows, the pictures, every text and every attribute that could load."""

    VOID = frozenset({"meta", "img", "link", "br", "hr", "input"})

    def __init__(self, html):
        super().__init__()
        self.rows, self.images, self.alts, self.texts = [], [], [], []
        self.links, self.ids, self.tags, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action")]
        if tag == "img":
            self.images.append(named["src"])
            self.alts.append(named["alt"])
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def picture(value, caption, size_hw=(54, 80)):
    return Picture(image=np.full((*size_hw, 3), value, np.uint8), caption=caption)


def page(**changes):
    base = {
        "title": "Fractions <of> HC18",
        "data_kind": "hc18",
        "figures": [Picture(image=encode_png(np.zeros((54, 80), np.uint8)), caption="the curve")],
        "real": [picture(10, "012_HC")],
        "synthetic": [picture(20, "synthetic 1"), picture(30, "synthetic 2")],
        "predictions": {"Worst": [picture(40, "a_HC, Dice 70.0 %")]},
        "predictions_note": "Trial r1.",
        "candidates": [
            {
                "name": "",
                "n_made": 8,
                "n_kept": 5,
                "reasons": {"segmenter disagrees": 2, "near copy": 1},
                "rejected": [picture(50, "segmenter disagrees, 0.61")],
            }
        ],
        "near_copies": [(picture(60, "made, 0.98"), picture(70, "nearest 020_HC"))],
        "near_copies_note": "Held-out real: 0.79.",
        "data_facts": {"images": "803 of 999"},
        "data_summary": pd.DataFrame({"part": ["train"], "images": [562], "exams": [450]}),
        "protocol": ["No validation label chose anything."],
        "provenance": {"git": "a1b2c3 (dirty)", "command": "sonosweep sweep fractions"},
        "config_yaml": "steps: 300  # <300>\n",
        "runs": pd.DataFrame({"id": ["r1"], "seconds": [12.5], "peak": [np.nan]}),
    }
    return page_of(*sweep(), **(base | changes))


@pytest.fixture(scope="module")
def html():
    return page()


def test_nothing_is_loaded_from_anywhere(html):
    page = Page(html)
    assert page.open == []
    assert {link.split(",")[0] for link in page.links if not link.startswith("#")} == {
        "data:image/png;base64"
    }
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"url\(|@import", html)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_pictures_decode_and_are_described(html):
    page = Page(html)
    decoded = [
        cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), 1)
        for uri in page.images
    ]
    assert [int(image[0, 0, 0]) for image in decoded] == [0, 20, 30, 10, 40, 50, 60, 70]
    assert all(image.shape == (54, 80, 3) for image in decoded)
    assert page.alts[4] == "a_HC, Dice 70.0 %"


def test_tables_carry_the_numbers_and_the_failed_rows(html):
    rows = Page(html).rows
    scored = next(row for row in rows if row[:4] == ["+ synthetic", "10 %", "40", "105"])
    header = next(row for row in rows if "weighted Dice %" in row)
    shown = dict(zip(header, scored, strict=True))
    assert shown["Dice %"] == "83.0"
    assert shown["weighted Dice %"].startswith("88.5")
    failed = [row for row in rows if row[-1] == "failed: loss | NaN at step_7"]
    assert [row[0] for row in failed] == ["+ synthetic", "+ synthetic"]
    assert sum(row[-1] == "pending" for row in rows) == 2
    assert any(row[0] == "box only (no image)" and "88.0" in row for row in rows)
    assert ["train", "562", "450"] in rows
    assert ["r1", "12.5", "–"] in rows


def test_differences_controls_and_budgets(html):
    page = Page(html)
    difference = next(row for row in page.rows if len(row) == 11 and row[0] == "+ synthetic")
    assert difference[1:5] == ["real only", "Dice, points", "10 %", "+3.0 points"]
    assert difference[5:7] == ["2.0 to 4.0 points", "raised"]
    assert difference[7:] == ["0.070", "3", "1", "–"]  # adjusted p, exams, trial pairs, spread
    assert "not that there is no difference" in page.text
    box = "88.0 % without the image; the trained models score 85.0 to 95.0 %."
    assert box in page.text
    assert ["+ synthetic", "40", "60", "5", "105", ""] in page.rows


def test_finding_provenance_and_attribution_are_there(html):
    page = Page(html)
    assert "raised Dice by 3.0 points (95 % CI 2.0 to 4.0, 3 exams)" in page.text
    assert "The gate kept 5 of 8 candidates (62 %)." in page.text
    assert "a1b2c3 (dirty)" in page.text
    assert "doi:10.5281/zenodo.1327317" in page.text
    assert "CC BY 4.0" in page.text
    assert "No validation label chose anything." in page.text
    assert "Procedural phantoms" not in page.text


@pytest.mark.parametrize(
    ("part", "name", "heading"),
    [
        ("kept_labels", "kept", "What self-training kept"),
        ("agreement", "agreement", "How far the annotation goes"),
    ],
)
def test_a_table_is_shown_only_where_there_is_any(html, part, name, heading):
    assert heading not in html
    table = pd.DataFrame({"agreement with": ["each other", "the annotation"], "all": ["99", "97"]})
    shown = Page(page(**{part: table}))
    assert heading in shown.text
    assert ["each other", "99"] in shown.rows
    assert f"#{name}" in shown.links
    assert name in shown.ids


def test_a_column_with_a_long_text_is_read_from_the_left():
    table = pd.DataFrame({"n": ["1", "2"], "how to read it": ["short", 8 * "so long "]})
    assert wordy_columns(table) == [False, True]
    text = page(kept_labels=table)
    assert '<th scope="col">n</th><th scope="col" class="words">how to read it</th>' in text
    assert '<td>1</td><td class="words">short</td>' in text


def test_text_is_escaped(html):
    assert "Fractions &lt;of&gt; HC18" in html
    assert "# &lt;300&gt;" in html
    assert "<of>" not in html


def test_phantoms_carry_a_banner_and_no_attribution_to_hc18():
    text = Page(page(data_kind="phantom")).text
    assert "Procedural phantoms: the numbers say nothing about patients." in text
    assert "zenodo" not in text


def test_same_content_gives_the_same_page(html):
    assert page() == html


def test_a_sweep_without_results_has_a_page():
    results, per_image = sweep()
    bare = Page(page_of(results[results["status"] != "done"], per_image.iloc[:0]))
    assert bare.text.count("No two conditions can be compared yet.") == 1
    assert "1 of 2 trials failed and is listed in the table." in bare.text
    assert bare.images == []
    assert any(row[-1] == "failed: loss | NaN at step_7" for row in bare.rows)


def test_large_arrays_are_shrunk_and_png_bytes_kept():
    uri = data_uri(np.full((540, 800, 3), 90, np.uint8))
    image = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), 1)
    assert image.shape == (351, 520, 3)
    raw = encode_png(np.zeros((900, 900), np.uint8))
    assert base64.b64decode(data_uri(raw).split(",")[1]) == raw


def test_small_parts_by_hand():
    results, per_image = sweep()
    assert status_line(results) == (
        "5 trials · 3 done · 1 failed · 1 pending · 0.8 min of training and testing · "
        "peak memory 0.5 GiB"
    )
    box = results[results["condition"] == "box_only"]
    assert control_sentences(box, per_image=per_image) == [
        "hc18, jittered-box prompt: 88.0 % without the image; no trained model was scored here."
    ]
    found = budgets(results).set_index(["condition", "n_real"])
    assert found.loc[("real", 40)].tolist()[:4] == [0, 5, 45, 0]
    assert found.loc[("synthetic", 400)].tolist()[:4] == [60, 5, 465, 60]
    assert "box_only" not in found.index


def test_the_prompt_that_is_pictured_has_a_trained_model():
    _, per_image = sweep()
    order = {"prompts": ["jittered_box", "whole_image"], "test_cohort": "hc18"}
    assert shown_prompt(per_image, **order) == "jittered_box"
    is_control = per_image["condition"] == "box_only"
    rows = per_image[is_control | (per_image["prompt"] == "whole_image")]
    assert shown_prompt(rows, **order) == "whole_image"
    for none in (per_image[is_control], per_image.iloc[:0], per_image.assign(test_cohort="es")):
        assert shown_prompt(none, **order) is None


def test_tables_are_read_by_keyboard_and_screen_reader_and_fit_a_printed_page():
    text = page()
    headings = re.findall(r"<th\b[^>]*>", text)
    assert headings
    assert all('scope="col"' in each for each in headings)
    assert "></th>" not in text
    assert text.count('class="scroll"') == text.count('class="scroll" tabindex="0" role="region"')
    assert "@page { size: A4 landscape" in text


def test_letters_of_all_charts_are_of_one_size():
    narrow, wide = (
        png_bytes(Figure(figsize=(width_in, 1), layout="constrained")) for width_in in (4, 8)
    )
    assert chart_width_px(narrow) == chart_width_px(wide) / 2 == 520
