//! Small tables for people: `status`, `deploys`, `node ls` and the like.

/// Lines of a table with aligned columns under a heading. Columns whose name starts with `>` are
/// aligned to the right.
pub(crate) fn render(heading: &[&str], rows: &[Vec<String>]) -> String {
    let names: Vec<&str> = heading.iter().map(|name| name.trim_start_matches('>')).collect();
    let mut widths: Vec<usize> = names.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for ((cell, width), name) in cells.iter().zip(&widths).zip(heading) {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            let right = name.starts_with('>');
            let (before, after) =
                if right { (padding, String::new()) } else { (String::new(), padding) };
            text.push_str(&format!("{before}{cell}{after}  "));
        }
        text.truncate(text.trim_end().len());
        text
    };
    let mut lines = vec![line(names.clone())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["a".into(), "1".into()], vec!["long name".into(), "1000".into()]];
        let text = render(&["name", ">files"], &rows);
        assert_eq!(text, "name       files\na              1\nlong name   1000");
    }
}
