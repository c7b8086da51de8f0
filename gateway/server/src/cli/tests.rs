use super::*;

/// Help texts are what a person reads first: a change of one is seen in review.
#[test]
fn help_texts() {
    let mut command = command().term_width(100);
    command.build();
    let mut text = command.render_long_help().to_string();
    for name in ["serve", "dev", "consume", "produce", "nodes", "seek", "check-config"] {
        let sub = command.find_subcommand_mut(name).expect("a command of ours");
        text += &format!("\n=== {name}\n{}", sub.render_long_help());
    }
    insta::assert_snapshot!(text);
}

#[test]
fn the_definition_is_consistent() {
    command().debug_assert();
}
