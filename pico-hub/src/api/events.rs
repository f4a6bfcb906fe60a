//! EventService.

use pico_proto::v1;
use pico_proto::v1::event_service_server::EventService;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Service, parts};
use crate::hub::Handle;

/// Events that may wait for their reader.
const QUEUE: usize = 64;

#[tonic::async_trait]
impl EventService for Service {
    type WatchEventsStream = ReceiverStream<Result<v1::Event, Status>>;

    async fn watch_events(
        &self,
        request: Request<v1::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let (caller, request) = parts(request)?;
        let app = match request.app {
            Some(named) => Some(Handle::new(caller.clone(), Some(named))?),
            None => None,
        };
        let since = request.since.as_ref();
        let watch = self.0.watch_events(caller, app, request.after, since).await;
        let mut watch = watch.map_err(Status::from)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(async move {
            loop {
                let batch = tokio::select! {
                    batch = watch.next(!request.no_follow) => batch,
                    () = sender.closed() => return,
                };
                let events = match batch {
                    Ok(events) if events.is_empty() => return,
                    Ok(events) => events.into_iter().map(Ok).collect(),
                    Err(problem) => vec![Err(Status::from(problem))],
                };
                for event in events {
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
