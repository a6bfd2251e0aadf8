//! A graph of stages as a tree: each stage under the latest of its inputs, the others named beside it.

/// A line of the tree: what to draw before the text, and before further lines of the same node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The node.
    pub node: usize,
    /// Drawn before the node's name.
    pub lead: String,
    /// Drawn before notes below the node.
    pub below: String,
    /// Inputs other than the one that the node hangs under.
    pub also: Vec<usize>,
}

/// Lays out nodes in drawing order. `needs[i]` are the inputs of node i, all before i.
pub fn layout(needs: &[Vec<usize>]) -> Vec<Line> {
    let mut depth = vec![0usize; needs.len()];
    let mut parent = vec![None; needs.len()];
    for (i, inputs) in needs.iter().enumerate() {
        // The deepest input, the earliest of those: what the node really waits for.
        parent[i] = inputs.iter().copied().max_by_key(|&n| (depth[n], std::cmp::Reverse(n)));
        depth[i] = parent[i].map_or(0, |p| depth[p] + 1);
    }
    let mut lines = Vec::new();
    let roots: Vec<usize> = (0..needs.len()).filter(|&i| parent[i].is_none()).collect();
    for root in roots {
        draw(root, "", "", needs, &parent, &mut lines);
    }
    lines
}

fn draw(node: usize, lead: &str, indent: &str, needs: &[Vec<usize>], parent: &[Option<usize>], lines: &mut Vec<Line>) {
    let children: Vec<usize> = (0..needs.len()).filter(|&i| parent[i] == Some(node)).collect();
    let mut also: Vec<usize> = needs[node].iter().copied().filter(|&n| Some(n) != parent[node]).collect();
    also.sort_unstable();
    also.dedup();
    let below = format!("{indent}{}", if children.is_empty() { "   " } else { "│  " });
    lines.push(Line { node, lead: lead.to_owned(), below, also });
    for (i, &child) in children.iter().enumerate() {
        let (branch, rest) = if i + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        draw(child, &format!("{indent}{branch}"), &format!("{indent}{rest}"), needs, parent, lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_hang_under_what_they_wait_for() {
        // 0 dataset; 1 describe <- 0; 2 embed <- 0, 1; 3 graph <- 0; 4 align <- 2, 3
        let lines = layout(&[vec![], vec![0], vec![0, 1], vec![0, 0], vec![2, 3]]);
        let drawn: Vec<String> = lines.iter().map(|l| format!("{}{} also {:?}", l.lead, l.node, l.also)).collect();
        assert_eq!(drawn, ["0 also []", "├─ 1 also []", "│  └─ 2 also [0]", "│     └─ 4 also [3]", "└─ 3 also []"]);
        assert_eq!(lines[1].below, "│  │  ");
    }

    #[test]
    fn several_roots_stand_side_by_side() {
        let lines = layout(&[vec![], vec![], vec![1]]);
        assert_eq!(lines.iter().map(|l| l.node).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
