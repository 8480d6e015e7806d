"""A fixed list of texts about many things, to compare queries and labels with: how high are cosines by chance?

That differs from CLIP to CLIP and from collection to collection, so that no single threshold holds. The texts are
short, like captions, and spread over sixteen topics.
"""

import hashlib

NEAR = 0.95  # a text fits a picture, or the best one of many, if it fits better than this share of the list
UNSURE = 0.8  # from this share on it may fit; below, hardly

_TOPICS = {
    "workshops": """
        a lathe turning a steel shaft; a carpenter planing an oak board; rolls of copper wire; a welder behind a mask;
        a drawer full of rusty screws; a hydraulic press; a row of sewing machines; a mould for casting bronze; glue
        drying on a broken chair; a blacksmith at the anvil; sawdust on the floor; a conveyor belt with bottles; a
        crate of ball bearings; a worn leather tool belt; an oil stain under a generator; a robot arm in a car plant""",
    "offices": """
        a stack of unpaid invoices; a meeting room with grey chairs; a spreadsheet of quarterly sales; a stapler on a
        desk; a whiteboard covered with notes; a man in a suit signing a contract; a queue at the bank counter; a filing
        cabinet with open drawers; a cubicle under neon light; a business card with a logo; a headset on a keyboard; a
        visitor badge; a slide about market share; a shredder full of paper; a job interview; a rubber stamp""",
    "medicine": """
        an x-ray of a broken wrist; a dentist's chair; a nurse changing a bandage; a tray of surgical scissors; cells
        under a microscope; a hearing aid; a wheelchair ramp; a blood pressure cuff; a rack of test tubes; a scan of a
        brain; an ambulance at night; a patient on a stretcher; a bottle of cough syrup; a plaster cast on a leg; an
        optician's eye chart; a waiting room with magazines""",
    "farming": """
        a combine harvester in a field of barley; a milking machine; sacks of fertilizer; a greenhouse with seedlings;
        an irrigation ditch; a scarecrow between cabbages; bales of straw; a beekeeper opening a hive; a shepherd with
        his flock; a grain silo; a plough behind two oxen; a vineyard in autumn; a compost heap; a tractor stuck in mud;
        a barn with a red roof; pigs at a trough""",
    "sea": """
        a container ship in harbour; a coral reef with divers; nets drying on a quay; a lighthouse in fog; a wreck on
        the sea bed; an oil platform; oysters on ice; a surfer inside a wave; a submarine's control room; a ferry
        leaving the pier; a lobster trap; a jetty at low tide; an anchor covered with rust; a canal lock; a tanker
        seen from above; footprints on wet sand""",
    "mountains and weather": """
        a glacier melting into a lake; a dust storm over a desert; lightning above a valley; a mountain hut in snow; a
        dry river bed; a volcano at dawn; hail on a windscreen; a waterfall in a gorge; a rope bridge; frost on a
        window pane; a canyon of red rock; a flooded street; a cave with stalactites; clouds below a summit; a field of
        lava; an avalanche barrier""",
    "cities": """
        a subway platform at rush hour; scaffolding on a facade; a multi-storey car park; a pedestrian crossing in the
        rain; an empty shopping mall; a tram under cables; graffiti on a concrete wall; a crane above a building site; a
        fountain in a square; an old stone bridge; rows of terraced houses; a skyline at dusk; a manhole cover; a market
        stall with cloth; a toll booth; a staircase in a tower block""",
    "interiors": """
        a sofa with striped cushions; a bathroom with green tiles; a radiator below a window; a bunk bed; a chandelier
        in a ballroom; a wardrobe with coats; a fireplace with ashes; a spiral staircase; a kitchen sink with dishes; a
        wicker basket of laundry; a carpet with a floral pattern; an attic full of boxes; a rocking chair on a porch; a
        bedside lamp; a curtain blowing in the wind; a shelf of preserves""",
    "sports": """
        a goalkeeper catching the ball; a referee showing a card; hurdles on a running track; a fencing match; climbers
        on a rock face; a rowing boat with eight oars; an empty stadium; a gymnast on the beam; a chess tournament; a
        wrestling mat; a cyclist on a mountain pass; a swimmer in lane four; a racehorse at the gate; a snooker table;
        a skydiver above fields; a judo throw""",
    "history": """
        a knight's rusty helmet; a Roman mosaic; a Viking ship under sail; a trench of the first world war; a parchment
        with a wax seal; a steam locomotive; a portrait of a duke; an Egyptian sarcophagus; a cave painting of bison; a
        coin with an emperor's head; ruins of an abbey; a samurai's armour; a telegram from 1912; a cannon on a
        rampart; a stagecoach; a clay tablet with writing""",
    "science": """
        a diagram of a cell; a telescope on a hill; a proof of a theorem; the rings of Saturn; a particle collider; a
        fossil of a fern; a graph with two curves; the periodic table; a satellite above the earth; a magnet with iron
        filings; a lecture on thermodynamics; a map of ocean currents; a crystal of quartz; a wind tunnel; a bar chart
        of rainfall; a circuit with transistors""",
    "electronics": """
        a server rack with blue cables; a cracked phone display; a soldering iron; an old radio with dials; a hard disk
        without its cover; a drone with four rotors; a solar panel on a roof; a video game controller; a fuse box; a
        cash machine; a security camera; a printer out of paper; a screenshot of an error message; a router with
        antennas; a turntable playing a record; a satellite dish""",
    "people": """
        a bride throwing her bouquet; twins in a pram; a crowd with banners; an old couple on a bench; a barber cutting
        hair; a boy blowing bubbles; dancers in folk costume; a soldier saluting; a choir in a church; a toddler's first
        steps; a woman reading in a hammock; tourists taking photographs; a street musician; a family at a campfire; a
        teacher at the blackboard; commuters asleep on a train""",
    "food": """
        a butcher's counter; dough rising in a bowl; a bowl of lentil soup; a wheel of blue cheese; a wedding cake; a
        jar of pickled cucumbers; noodles with tofu; a roast goose; a cup of black coffee; an oyster platter; a spice
        market; a barbecue with sausages; a plate of dumplings; a fridge with leftovers; a glass of stout; a menu on a
        chalk board""",
    "animals and plants": """
        a moose in a swamp; a spider's web with dew; a herd of gnus; a hedgehog under leaves; an aquarium with eels; a
        heron catching a frog; moss on a tree trunk; a cactus in bloom; a bat in flight; a kennel of puppies; a stuffed
        owl; a field of lavender; a termite mound; a salamander on a stone; a bonsai; mushrooms on a rotten log""",
    "art and design": """
        an abstract painting in grey; a marble statue without arms; a pencil sketch of hands; a page of a comic; a
        poster for an opera; a page of sheet music; a stained glass window; a pattern of hexagons; a logo of a bank; a
        tattoo of a dragon; a woodcut of a storm; a fashion show; an origami crane; a bookplate; handwriting on lined
        paper; a blueprint of a house""",
}

OTHER_TEXTS: tuple[str, ...] = tuple(" ".join(text.split()) for topic in _TOPICS.values() for text in topic.split(";"))
LIST_HASH = hashlib.sha256("\n".join(OTHER_TEXTS).encode()).hexdigest()[:16]
