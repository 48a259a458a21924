"""Files that belong together are found by templates or tables, and all that is missing is said at once."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segline.data import cases as data_cases
from segline.data.cases import Case, list_faults, natural


def checked(found: data_cases.Found) -> list[Case]:
    if found.faults:
        raise ValueError(list_faults(found.faults))
    return found.cases


def find_cases(*where: Any, **how: Any) -> list[Case]:
    return checked(data_cases.find_cases(*where, **how))


def read_table(*where: Any, **how: Any) -> list[Case]:
    return checked(data_cases.read_table(*where, **how))


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_images_and_masks_are_matched_by_their_fields(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Tile 1/images/a.jpg",
        "Tile 1/masks/a.png",
        "Tile 2/images/a.jpg",
        "Tile 2/masks/a.png",
        "Tile 2/images/readme.txt",
    )
    cases = find_cases(tmp_path, "Tile {tile}/images/{name}.jpg", "Tile {tile}/masks/{name}.png", group="tile")
    assert [(case.name, case.group) for case in cases] == [("1/a", "1"), ("2/a", "2")]
    assert cases[1].images == (tmp_path / "Tile 2/images/a.jpg",)
    assert cases[1].masks == (tmp_path / "Tile 2/masks/a.png",)


def test_a_field_does_not_reach_over_folders_and_is_the_same_where_it_repeats(tmp_path: Path) -> None:
    touch(tmp_path, "x/x.png", "x/y.png", "z/deep/z.png", "x/mask.png", "z/mask.png")
    cases = find_cases(tmp_path, "{name}/{name}.png", "{name}/mask.png")
    assert [case.name for case in cases] == ["x"]


def test_one_file_a_band_keeps_the_order_of_the_templates(tmp_path: Path) -> None:
    touch(tmp_path, "a-R.tif", "a-G.tif", "a-N.tif", "a.gpkg")
    (case,) = find_cases(tmp_path, ["{name}-N.tif", "{name}-R.tif", "{name}-G.tif"], "{name}.gpkg")
    assert [path.name for path in case.images] == ["a-N.tif", "a-R.tif", "a-G.tif"]


def test_a_star_is_one_file_an_object(tmp_path: Path) -> None:
    touch(tmp_path, "s/a[1]/images/i.png", "s/a[1]/masks/2.png", "s/a[1]/masks/1.png", "s/a1/masks/3.png")
    (case,) = find_cases(tmp_path, "s/{name}/images/i.png", "s/{name}/masks/*.png")
    assert case.objects
    assert [path.name for path in case.masks] == ["1.png", "2.png"]
    assert case.name == "a[1]"


def test_masks_beside_their_images_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.png", "b_mask.png")
    assert [case.name for case in find_cases(tmp_path, "{name}.png", "{name}_mask.png")] == ["a", "b"]
    with pytest.raises(ValueError, match="find the same files"):
        find_cases(tmp_path, "{name}.png", "{name}.png")


def test_masks_without_an_image_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png", "masks/b.png", "masks/c.png")
    found = data_cases.find_cases(tmp_path, "images/{name}.png", "masks/{name}.png")
    assert [case.name for case in found.cases] == ["a"]
    assert found.notes == [f"2 of the masks have no image, such as {tmp_path}/masks/b.png"]
    touch(tmp_path, "a_rgb.png", "a_ir.png", "a.png")
    bands = ["{name}_rgb.png", "{name}_ir.png"]
    assert data_cases.find_cases(tmp_path, bands, "{name}.png").notes == []  # which finds the bands, too


def test_templates_may_be_absolute_or_a_single_file(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.tif", "y/a.png", "elsewhere/b")
    (case,) = find_cases(tmp_path / "elsewhere", f"{tmp_path}/x/{{name}}.tif", f"{tmp_path}/y/{{name}}.png")
    assert (case.name, case.images[0]) == ("a", tmp_path / "x/a.tif")
    (case,) = find_cases(tmp_path, "x/a.tif", "y/a.png")
    assert case.name == "a"


def test_a_split_field_is_an_official_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png", "extra/c.png", "extraannot/c.png")
    cases = find_cases(tmp_path, "{split}/{name}.png", "{split}annot/{name}.png")
    assert [(case.name, case.split) for case in cases] == [("a", "train"), ("b", "val")]


def test_the_same_name_in_two_parts_is_two_cases(tmp_path: Path) -> None:
    touch(tmp_path, "train/s_1.png", "trainannot/s_1.png", "val/s_1.png", "valannot/s_1.png")
    cases = find_cases(tmp_path, "{split}/{name}.png", "{split}annot/{name}.png")
    assert [(case.name, case.group) for case in cases] == [("train/s_1", "train/s_1"), ("val/s_1", "val/s_1")]
    assert {
        case.group for case in find_cases(tmp_path, "{split}/{name}.png", "{split}annot/{name}.png", r"(\w+?)_")
    } == {"s"}


def test_a_group_is_found_by_an_expression(tmp_path: Path) -> None:
    touch(tmp_path, "p1_a.png", "p1_b.png", "p2_a.png", *(f"m/{name}.png" for name in ("p1_a", "p1_b", "p2_a")))
    cases = find_cases(tmp_path, "{name}.png", "m/{name}.png", group=r"(\w+)_")
    assert [case.group for case in cases] == ["p1", "p1", "p2"]
    with pytest.raises(ValueError, match=r"3 faults(.|\n)*'slide'.*\['name'\](.|\n)*'p2_a'"):
        find_cases(tmp_path, "{name}.png", "m/{name}.png", group="slide")


def test_no_images_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "data/scans/a.jpeg")
    with pytest.raises(
        ValueError, match=r"no images found: .*scans/{name}.png.*data/scans there is a.jpeg; set data.root or"
    ):
        find_cases(tmp_path / "data", "scans/{name}.png", "m/{name}.png")
    with pytest.raises(ValueError, match=r"/data there is scans;"):
        find_cases(tmp_path / "data", "missing/deep/{name}.png", "m/{name}.png")
    with pytest.raises(ValueError, match=r"write {name} for what differs"):
        find_cases(tmp_path, f"{tmp_path}/data/scans", "m/{name}.png")


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "a_r.tif", "b_r.tif", "b_g.tif", "c_r.tif", "c_g.tif", "m/c.png", "m/a.png")
    with pytest.raises(ValueError, match="2 faults") as error:
        find_cases(tmp_path, ["{name}_r.tif", "{name}_g.tif"], "m/{name}.png")
    assert "a_r.tif lacks a band" in str(error.value)
    assert f"b_r.tif has no mask: there is no {tmp_path}/m/b.png" in str(error.value)
    assert "c_r" not in str(error.value)


def test_a_mask_template_with_another_field_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r"'m/{id}.png' has a field 'id'.*\['name'\]"):
        find_cases(tmp_path, "{name}.png", "m/{id}.png")


def test_cases_come_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, *(f"s{n}.png" for n in (10, 9, 1)), *(f"m/s{n}.png" for n in (10, 9, 1)))
    assert [case.name for case in find_cases(tmp_path, "{name}.png", "m/{name}.png")] == ["s1", "s9", "s10"]
    assert sorted(["b", "aa", "a2", "a10"], key=natural) == ["a2", "a10", "aa", "b"]


def test_a_table_lists_cases(tmp_path: Path) -> None:
    touch(tmp_path, "i/a.png", "i/b.png", "i/b2.png", "m/a.png", "m/b.png")
    (tmp_path / "t.csv").write_text(
        "\ufeffimage,mask,group,split,burn\ni/a.png,m/a.png,p,train,7\ni/b.png;i/b2.png,m/b.png,,,kind\n"
    )
    one, two = read_table("t.csv", tmp_path)
    assert (one.name, one.group, one.split, one.burn) == ("a", "p", "train", 7)
    assert (two.name, two.group, two.split, two.burn) == ("b", "b", None, "kind")
    assert [path.name for path in two.images] == ["b.png", "b2.png"]


def test_a_table_may_name_any_column_as_the_group(tmp_path: Path) -> None:
    touch(tmp_path, "p1_a.png", "m.png")
    row = {"image": "p1_a.png", "mask": "m.png", "patient": 12}
    assert read_table([row], tmp_path, "patient")[0].group == "12"
    assert read_table([row], tmp_path, r"(\w+)_")[0].group == "p1"
    assert read_table([{**row, "group": "g"}], tmp_path, "patient")[0].group == "g"


def test_rows_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.png", "y/a.png", "m.png")
    rows = [{"image": f"{folder}/a.png", "mask": "m.png"} for folder in "xy"]
    assert [case.name for case in read_table(rows, tmp_path)] == ["x/a", "y/a"]
    with pytest.raises(ValueError, match="several rows of the name x/a"):
        read_table([rows[0], rows[0]], tmp_path)


def test_all_faults_of_a_table_are_said_at_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "m.png")
    rows = [
        {"image": "a.png", "mask": ""},
        {"image": "gone.png", "mask": "m.png"},
        {"image": "a.png", "mask": "m.png", "name": "c", "split": "training"},
    ]
    with pytest.raises(ValueError, match="3 faults") as error:
        read_table(rows, tmp_path)
    assert "row 1 of the table has no mask" in str(error.value)
    assert f"row 2 of the table: there is no {tmp_path}/gone.png" in str(error.value)
    assert "'training'; expected one of train, val, test" in str(error.value)
    with pytest.raises(ValueError, match=r"there is no table .*none.csv; set data.table"):
        read_table("none.csv", tmp_path)
    (tmp_path / "empty.csv").write_text("image,mask\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_table("empty.csv", tmp_path)


def test_brackets_in_the_name_of_a_folder_are_brackets(tmp_path: Path) -> None:
    root = touch(tmp_path / "set [raw]", "i_1.png", "m_1.png", "o_1/a.png")
    assert [case.name for case in find_cases(root, "i_{name}.png", "m_{name}.png")] == ["1"]
    assert len(find_cases(root, "i_{name}.png", "o_{name}/*.png")[0].masks) == 1


@given(st.integers(1, 40), st.integers(1, 15))
def test_runs_of_neighbours_are_groups_and_none_is_a_sliver(count: int, length: int) -> None:
    rows = [{"image": f"{n}.png", "mask": "m.png", "name": f"{n}"} for n in range(count)]
    with TemporaryDirectory() as folder:
        touch(Path(folder), "m.png", *(row["image"] for row in rows))
        cases = read_table(rows[::-1], Path(folder), group=length)
    groups = [case.group for case in sorted(cases, key=lambda case: int(case.name))]
    runs = [(group, len(list(same))) for group, same in groupby(groups)]
    assert len({group for group, _ in runs}) == len(runs)  # no group comes back
    assert all(size == length for _, size in runs[:-1])
    assert min(length, count) / 2 <= runs[-1][1] < max(1.5 * length, length + 1)


def test_runs_keep_to_an_official_split_and_are_named_by_their_ends(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{split}/{kind}_{n}.png" for split in ("train", "val") for kind in "im" for n in range(9, 12)))
    cases = find_cases(tmp_path, "{split}/i_{name}.png", "{split}/m_{name}.png", group=3)
    assert {case.group for case in cases} == {"train/9..train/11", "val/9..val/11"}
    with pytest.raises(ValueError, match=r"data\.group is 0"):
        find_cases(tmp_path, "{split}/i_{name}.png", "{split}/m_{name}.png", group=0)


def test_a_long_list_of_faults_is_cut_with_their_number() -> None:
    text = list_faults([f"fault {n}" for n in range(25)])
    assert text.startswith("25 faults in the data:\n  fault 0\n")
    assert text.endswith("fault 19\n  ... and 5 more")
    assert list_faults(["one"]).startswith("1 fault in")
