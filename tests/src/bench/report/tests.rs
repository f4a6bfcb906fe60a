use super::plot::{Axis, Lines, Plot};
use super::*;
use crate::harness::Samples;

fn outcome() -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let samples: Samples = [10.0, 12.0, 20.0].into_iter().collect();
    outcome.row("nginx", "warm <over> hot", "ms", &samples)?;
    outcome.row("nginx", "cold", "ms", &samples.map(|value| value * 2.0))?;
    outcome.row("nginx", "GETs", "count", &samples)?;
    outcome.notes.push("A note & more.".into());
    Ok(outcome)
}

fn report(outcome: Outcome, check: impl FnOnce(&Report<'_>)) {
    let host = Host {
        kernel: "6.1".into(),
        cpus: 2,
        cpu: "A processor".into(),
        memory_bytes: 1 << 30,
        load: 0.5,
    };
    let targets = [Target {
        name: "wake.nginx.warm_over_hot_ms".into(),
        value: None,
        goal: "<= 60".into(),
        met: false,
    }];
    check(&Report {
        host: &host,
        date: "2026-11-25",
        command: "cargo xtask bench wake",
        benches: &BTreeMap::from([("wake".to_owned(), outcome)]),
        targets: &targets,
    });
}

#[test]
fn every_row_and_target_is_in_both_reports_and_nothing_breaks_out_of_its_cell() -> Result<()> {
    report(outcome()?, |report| {
        let (html, markdown) = (html::page(report), markdown::page(report));
        assert!(html.contains("warm &lt;over&gt; hot") && !html.contains("<over>"));
        assert!(html.contains("class=\"missed\">missed") && html.contains("not measured"));
        assert!(html.contains("A note &amp; more."));
        assert!(markdown.contains("| nginx | warm <over> hot | ms | 12.0 | 20.0 | 20.0 | "));
        assert!(markdown.contains("| wake.nginx.warm_over_hot_ms | not measured | <= 60 | missed |"));
    });
    Ok(())
}

#[test]
fn bars_are_grouped_by_unit_and_app_and_a_lone_one_is_not_drawn() -> Result<()> {
    let plots = plot::bars("wake", &outcome()?);
    let [Plot::Bars(bars)] = plots.as_slice() else {
        panic!("{plots:?}");
    };
    assert_eq!((bars.unit.as_str(), bars.groups.len()), ("ms", 1));
    assert_eq!(bars.groups[0].1.len(), 2);
    Ok(())
}

#[test]
fn a_longer_time_is_a_longer_bar() -> Result<()> {
    let text = svg::draw(&plot::bars("wake", &outcome()?)[0]);
    let width = |colour: &str| -> Option<f64> {
        let (_, rest) = text.split_once(&format!("<rect class=\"{colour}\""))?;
        let (_, rest) = rest.split_once("width=\"")?;
        rest.split('"').next()?.parse().ok()
    };
    let (warm, cold) = (width("c0").context("no bar")?, width("c1").context("no bar")?);
    assert!((cold / warm - 2.0).abs() < 0.01, "{warm} {cold}");
    Ok(())
}

#[test]
fn curves_on_a_log_axis_leave_out_what_has_no_place_there() {
    let axis = |log| Axis {
        label: "x".into(),
        log,
    };
    let lines = Lines {
        title: "curves".into(),
        x: axis(true),
        y: axis(true),
        series: vec![("a".into(), vec![(0.0, 1.0), (1.0, 1.0), (10.0, 100.0)])],
    };
    let text = svg::draw(&Plot::Lines(lines));
    // Left below, and right above, of the frame.
    assert!(text.contains("points=\"70.0,380.0 710.0,40.0\""), "{text}");
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
}

#[test]
fn what_was_reckoned_once_is_no_bar() -> Result<()> {
    let mut outcome = outcome()?;
    let one: Samples = [1.0].into_iter().collect();
    outcome.row("nginx", "dollars", "ms", &one)?;
    let plots = plot::bars("wake", &outcome);
    assert!(!format!("{plots:?}").contains("dollars"), "{plots:?}");
    Ok(())
}

#[test]
fn nothing_measured_draws_without_numbers_that_are_none() {
    let empty = Plot::Lines(Lines {
        title: "nothing".into(),
        x: Axis {
            label: String::new(),
            log: true,
        },
        y: Axis {
            label: String::new(),
            log: false,
        },
        series: Vec::new(),
    });
    let text = svg::draw(&empty);
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
}
