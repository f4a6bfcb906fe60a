//! `pico event ...`

use pico_proto::v1;
use pico_proto::v1::event_service_client::EventServiceClient;

use super::args::EventCommand;
use super::exit::Exit;
use super::failure::{Failure, Result};
use super::{Context, view};

pub(super) async fn run(context: &Context, command: EventCommand) -> Result<Exit> {
    let (app, after, follow) = match command {
        EventCommand::Follow { app, after } => (app, after.unwrap_or(0), true),
        EventCommand::List { app } => (app, 0, false),
    };
    let request = v1::WatchEventsRequest {
        app: app.map(|name| v1::AppHandle {
            id: String::new(),
            owner: context.owner.clone().unwrap_or_default(),
            name,
        }),
        after,
        // With neither a number nor a time only new ones come: the first moment there is asks for all.
        since: (!follow).then(prost_types::Timestamp::default),
        no_follow: !follow,
    };
    let mut client = EventServiceClient::new(context.hub.clone());
    let mut events = client.watch_events(request).await?.into_inner();
    let mut kept = Vec::new();
    while let Some(event) = events.message().await? {
        let answer = view::event(&event);
        match context.output.json && !follow {
            true => kept.push(answer.document["event"].clone()),
            false => context.output.print(&answer)?,
        }
    }
    if follow {
        let told = "the hub ended the stream";
        let mut failure = Failure::new("CUT_OFF", Exit::UNREACHABLE, told).hint("pico event follow");
        failure.retryable = true;
        return Err(failure);
    }
    if context.output.json {
        context
            .output
            .print_document(&serde_json::json!({ "events": kept }))?;
    }
    Ok(Exit::OK)
}
